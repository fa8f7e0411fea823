"""The report of an evaluation: HTML in one file, Markdown with its tables, and JSON."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from reports.page import Cell, Section, Table, format_cell, render_page

DETECTIONS_FILE = "detections.json"
RESULTS_FILE = "results.json"


@dataclass
class Report:
    """The result of an evaluation.

    Attributes:
        title: the heading.
        summary: lines under the heading.
        highlights: names and values of the main results.
        sections: tables, charts and drawings.
        metrics: written to ``results.json``.
        detections: in COCO's result format, written to ``detections.json``.
    """

    title: str
    summary: Sequence[str] = ()
    highlights: Sequence[tuple[str, Cell]] = ()
    sections: list[Section] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    detections: Sequence[Mapping[str, Any]] = ()

    def markdown(self) -> str:
        """Render the tables as Markdown."""
        blocks = [f"# {self.title}", "\n".join(f"- {line}" for line in self.summary)]
        for section in self.sections:
            tables = [block for block in section.blocks if isinstance(block, Table)]
            if not tables:
                continue
            blocks += [f"## {section.title}"] + [section.note] * bool(section.note)
            for table in tables:
                blocks += [f"### {table.caption}"] if table.caption else []
                blocks.append(markdown_table(table.columns, table.rows))
                blocks += [table.note] if table.note else []
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        """Render one HTML page with all charts and drawings."""
        return render_page(self.title, self.summary, self.highlights, self.sections)


def prepare_output(output: Path) -> None:
    """Create the parent of the report directory.

    Raises :class:`EvaluationError` if the report exists, and ``OSError`` if its parent cannot be
    created.
    """
    if output.exists():
        raise EvaluationError(f"--output {output}: already exists. Name a new directory.")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)


def write_report(report: Report, output: Path) -> None:
    """Write the report directory atomically: under a temporary name, which is then renamed."""
    partial = output.absolute().with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        (partial / "report.md").write_text(report.markdown(), "utf-8")
        (partial / "report.html").write_text(report.html(), "utf-8")
        # JSON has no NaN.
        metrics = json.loads(json.dumps(report.metrics), parse_constant=lambda _: None)
        (partial / RESULTS_FILE).write_text(json.dumps(metrics, indent=1) + "\n")
        (partial / DETECTIONS_FILE).write_text(json.dumps(report.detections) + "\n")
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]] = ()) -> str:
    """Format a Markdown table; all columns but the first are aligned to the right."""
    separator = "|---" + "|---:" * (len(columns) - 1) + "|"
    return "\n".join([markdown_row(columns), separator, *map(markdown_row, rows)])


def markdown_row(cells: Sequence[Cell]) -> str:
    """Format one row of a Markdown table."""
    escaped = [format_cell(cell).replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
