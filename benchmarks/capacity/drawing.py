"""The extrapolated latencies as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, ScalarFormatter

from benchmarks.figures import COLOURS, MARKERS, svg_figure


def draw_extrapolation(
    loads: Sequence[float], p99_ms: Mapping[str, Mapping[int, Sequence[float]]], path: Path
) -> None:
    """Draw a panel per load balancer, with a line per number of replicas."""
    with svg_figure(path, 11, 4.2) as figure:
        panels = figure.subplots(1, len(p99_ms), sharey=True)
        for axes, (balancer, lines) in zip(panels, p99_ms.items(), strict=True):
            for (replicas, values), colour, marker in zip(
                lines.items(), COLOURS, MARKERS, strict=True
            ):
                axes.plot(loads, values, color=colour, marker=marker, label=f"{replicas}")
            axes.set_title(balancer)
            axes.set_xlabel("load")
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        panels[0].set_ylabel("simulated p99 in ms")
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(ScalarFormatter())
        panels[0].yaxis.set_minor_locator(NullLocator())
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=6, frameon=False, title="replicas"
        )
