"""Reports of the comparison: a Markdown table and a bar chart as SVG."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.axes import Axes

from benchmarks.comparison.servers import DEFAULT, OWN
from benchmarks.figures import COLOURS, svg_figure
from benchmarks.quartiles import format_quartiles, quartiles
from evaluation.report import markdown_row, markdown_table

Turn = dict[str, Any]
"""The measurements of one server in one round."""

_OTHER_COLOUR = "#8c8c8c"


def fraction_of(turn: Turn, ceiling: str) -> float:
    """Return the throughput as a fraction of the mean of the ceilings around the turn.

    ``ceiling``: a key of :meth:`benchmarks.comparison.ceiling.Ceiling.as_json`.
    """
    return float(turn["images_per_second"] / mean(one[ceiling] for one in turn["ceilings"]))


def p99_ms(turns: Sequence[Turn]) -> float | None:
    """Return the p99 of the responses of all turns at the common rate, by nearest rank.

    None if a request failed: the percentile of the remaining ones would be too low.
    """
    if not all(turn["all_ok"] for turn in turns):
        return None
    latencies_ms = sorted(ms for turn in turns for ms in turn["latencies_ms"])
    return float(latencies_ms[math.ceil(0.99 * len(latencies_ms)) - 1])


def write_report(results: dict[str, Any], output: Path) -> str:
    """Write ``results.md`` and, if there are rounds, ``results.svg``; return the Markdown text."""
    cases = {name: case for name, case in results["cases"].items() if case["rounds"]}
    head = f"{results['cpu']}; {results['engine']}; {results['seconds']:g} s per turn.\n"
    text = "\n".join([head, *(_case(name, case) for name, case in cases.items())])
    (output / "results.md").write_text(text)
    if cases:
        _draw(cases, output / "results.svg")
    return text


def _case(name: str, case: dict[str, Any]) -> str:
    rounds = case["rounds"]
    ceilings = [one for turns in rounds for turn in turns.values() for one in turn["ceilings"]]
    middle = {key: median(one[key] for one in ceilings) for key in ceilings[0]}
    lines = [
        f"### {name}",
        "",
        f"Ceiling {middle['images_per_second']:.1f} images/s: {middle['cores']:g} cores / "
        f"({middle['prepare_ms']:.2f} ms decode and warp + {middle['engine_ms']:.2f} ms engine "
        f"at batch {middle['batch_size']:g}), {middle['pillow_images_per_second']:.1f} with Pillow "
        f"({middle['pillow_prepare_ms']:.2f} ms); one thread per core without a server reaches "
        f"{middle['no_server_images_per_second']:.1f}. Medians and quartiles of {len(rounds)} "
        "rounds; p99 of the responses of all rounds.",
        "",
        markdown_table(
            [
                *("server", "images/s", "of the ceiling", "of the ceiling with Pillow"),
                *("of no server", f"of {DEFAULT}", f"p99 at {case['common_rate']:.1f}/s"),
                "configuration",
            ]
        ),
    ]
    for server in _by_throughput(case):
        turns = _turns(case, server)
        rates = [turn["images_per_second"] for turn in turns]
        of_default = [
            turns[server]["images_per_second"] / turns[DEFAULT]["images_per_second"]
            for turns in rounds
            if DEFAULT in turns and server in turns
        ]
        p99 = p99_ms(turns)
        lines.append(
            markdown_row(
                [
                    server,
                    f"{median(rates):.1f}",
                    format_quartiles([fraction_of(turn, "images_per_second") for turn in turns]),
                    f"{median(fraction_of(one, 'pillow_images_per_second') for one in turns):.2f}",
                    format_quartiles(
                        [fraction_of(turn, "no_server_images_per_second") for turn in turns]
                    ),
                    format_quartiles(of_default) if of_default else "",
                    "requests failed" if p99 is None else f"{p99:.0f} ms",
                    case["configurations"][server],
                ]
            )
        )
    share = max(turn["generator_cpu_share"] for turns in rounds for turn in turns.values())
    lines += ["", f"The load generator used at most {share:.1%} of one core.", ""]
    for server, reason in case["excluded"].items():
        lines += [f"Excluded: {server}: {reason}", ""]
    return "\n".join(lines)


def _turns(case: dict[str, Any], server: str) -> list[Turn]:
    return [turns[server] for turns in case["rounds"]]


def _by_throughput(case: dict[str, Any]) -> list[str]:
    """Return the servers that took part in all rounds, the fastest first."""
    return sorted(
        case["configurations"],
        key=lambda server: -median(turn["images_per_second"] for turn in _turns(case, server)),
    )


def _draw(cases: dict[str, Any], path: Path) -> None:
    """Draw a row per case: fractions of the ceiling, and p99."""
    servers = max(len(case["configurations"]) for case in cases.values())
    with svg_figure(path, 10, len(cases) * (1 + 0.3 * servers)) as figure:
        for row, (name, case) in zip(
            figure.subplots(len(cases), 2, squeeze=False), cases.items(), strict=True
        ):
            _bars(
                row[0],
                case,
                f"{name}: images/s as a fraction of the throughput ceiling",
                lambda turns: [fraction_of(turn, "images_per_second") for turn in turns],
            )
            _bars(
                row[1],
                case,
                f"{name}: p99 at {case['common_rate']:.1f} images/s, in ms",
                lambda turns: [p99 for turn in turns if (p99 := p99_ms([turn])) is not None],
            )


def _bars(
    axes: Axes, case: dict[str, Any], title: str, measure: Callable[[Sequence[Turn]], list[float]]
) -> None:
    """Draw the median over the rounds of each server, with the quartiles as error bars."""
    servers = _by_throughput(case)
    for row, server in enumerate(servers):
        if not (values := measure(_turns(case, server))):
            continue
        low, middle, high = quartiles(values)
        colour = COLOURS[0] if server in OWN else _OTHER_COLOUR
        axes.barh(row, middle, color=colour, xerr=[[middle - low], [high - middle]])
        axes.annotate(f" {middle:.3g}", (high, row), va="center")
    axes.set_yticks(range(len(servers)), servers)
    axes.invert_yaxis()
    axes.set_title(title, fontsize="medium")
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)
