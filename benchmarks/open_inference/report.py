"""The table of the results."""

from collections.abc import Mapping, Sequence

from benchmarks.open_inference.perf_analyzer import Measured
from benchmarks.quartiles import format_quartiles
from evaluation.report import Cell, markdown_table

_COLUMNS = ("concurrency", "", "{0}", "{1}", "ratio")


def to_markdown(rounds: Sequence[Mapping[str, Sequence[Measured]]], names: tuple[str, str]) -> str:
    """Return a table of throughputs and latencies: medians, and quartiles over the rounds.

    The ratio of each round divides the result of the first server by that of the second.
    """
    rows: list[list[Cell]] = []
    for index, first in enumerate(rounds[0][names[0]]):
        for title, field, decimals in (
            ("images/s", "images_per_s", 1),
            ("p50 ms", "p50_ms", 1),
            ("p99 ms", "p99_ms", 1),
        ):
            values = [
                [float(getattr(turns[name][index], field)) for turns in rounds] for name in names
            ]
            ratios = [one / other for one, other in zip(*values, strict=True)]
            cells = [format_quartiles(series, decimals) for series in values]
            rows.append([str(first.concurrency), title, *cells, format_quartiles(ratios)])
    return markdown_table([column.format(*names) for column in _COLUMNS], rows)
