"""Curves as SVG: medians of the rounds as lines, quartiles as bands."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from benchmarks.curves.curve import Curve, Point
from benchmarks.figures import COLOURS, MARKERS, svg_figure
from benchmarks.quartiles import quartiles


def draw_curve(curve: Curve, path: Path) -> None:
    """Draw images per second and p99 beside each other."""
    with svg_figure(path, 10, 4.4) as figure:
        throughput, latency = figure.subplots(1, 2)
        _draw_panel(throughput, curve, lambda point: point.images_per_s)
        throughput.set_ylabel("images/s")
        throughput.set_ylim(bottom=0)
        _draw_panel(latency, curve, lambda point: point.p99_ms)
        latency.set_ylabel(f"p99 in ms, {curve.p99_label}")
        latency.set_yscale("log")
        locator = LogLocator(subs=(1, 2, 5))
        latency.yaxis.set_major_locator(locator)
        # From tick to tick, so that there are at least two.
        bottom, top = latency.get_ylim()
        ticks = locator.tick_values(bottom, top)
        latency.set_ylim(ticks[ticks <= bottom].max(), ticks[ticks >= top].min())
        latency.yaxis.set_major_formatter(ScalarFormatter())
        latency.yaxis.set_minor_locator(NullLocator())
        handles, labels = throughput.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(curve.title, fontsize="large")


def _draw_panel(axes: Axes, curve: Curve, values: Callable[[Point], Sequence[float]]) -> None:
    for (name, points), colour, marker in zip(curve.series.items(), COLOURS, MARKERS, strict=False):
        measured = [point for point in points if values(point)]
        xs = [point.x for point in measured]
        rows = [quartiles(values(point)) for point in measured]
        axes.plot(xs, [row.median for row in rows], color=colour, marker=marker, label=name)
        axes.fill_between(
            xs, [row.low for row in rows], [row.high for row in rows], color=colour, alpha=0.2
        )
    axes.set_xlabel(curve.x_label)
    if curve.x_is_log:
        ticks = sorted({point.x for points in curve.series.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
