"""Markdown tables for the reports of the benchmarks."""

from collections.abc import Iterable


def header(*columns: str) -> str:
    """Return the header and delimiter rows of a table."""
    return f"{row(*columns)}\n|{'---|' * len(columns)}"


def row(*cells: object) -> str:
    """Return one row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a whole table, without a trailing newline."""
    return "\n".join([header(*columns), *(row(*cells) for cells in rows)])
