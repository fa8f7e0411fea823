"""Reports of tables and figures, as Markdown with image files and as one HTML file."""

import base64
import html
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError

Cell = str | int | float

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border: 1px solid #ccc; padding: .2em .7em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Table:
    """A table; floats are formatted with three decimals, NaN as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An encoded image; ``file_name`` ends in .png or .jpg."""

    title: str
    file_name: str
    content: bytes


@dataclass
class Report:
    """The result of an evaluation.

    Attributes:
        title: the heading.
        summary: lines under the heading.
        sections: tables and figures, in order.
        metrics: all metrics, written to ``results.json``.
        detections: in COCO's result format, written to ``detections.json``.
    """

    title: str
    summary: Sequence[str] = ()
    sections: list[Table | Figure] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    detections: Sequence[Mapping[str, Any]] = ()

    def markdown(self) -> str:
        """Render Markdown that refers to the figures as files in the same directory."""
        blocks = [f"# {self.title}", "\n".join(f"- {line}" for line in self.summary)]
        for section in self.sections:
            blocks.append(f"## {section.title}")
            if isinstance(section, Figure):
                blocks.append(f"![{section.title}]({section.file_name})")
                continue
            blocks.append(markdown_table(section.columns, section.rows))
            blocks += [section.note] if section.note else []
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        """Render one HTML page with embedded figures."""
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary)
        body = [f"<h1>{html.escape(self.title)}</h1><ul>{lines}</ul>"]
        for section in self.sections:
            body.append(f"<h2>{html.escape(section.title)}</h2>")
            body.append(_image(section) if isinstance(section, Figure) else _html_table(section))
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n<body>"
            + "\n".join(body)
            + "</body></html>\n"
        )


def check_output(output: Path) -> None:
    """Raise :class:`EvaluationError` if the report directory cannot be created."""
    if output.exists():
        raise EvaluationError(f"--output {output}: already exists. Name a new directory.")
    if not output.absolute().parent.is_dir():
        raise EvaluationError(f"--output {output}: the directory {output.parent} does not exist.")


def write_report(report: Report, output: Path) -> None:
    """Write the report directory atomically: under a temporary name, which is then renamed."""
    partial = output.absolute().with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        (partial / "report.md").write_text(report.markdown())
        (partial / "report.html").write_text(report.html())
        # JSON has no NaN.
        metrics = json.loads(json.dumps(report.metrics), parse_constant=lambda _: None)
        (partial / "results.json").write_text(json.dumps(metrics, indent=1) + "\n")
        (partial / "detections.json").write_text(json.dumps(report.detections) + "\n")
        for section in report.sections:
            if isinstance(section, Figure):
                (partial / section.file_name).write_bytes(section.content)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _format(cell: Cell) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "–" if cell != cell else f"{cell:.3f}"  # noqa: RUF001 (an en dash for NaN)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]] = ()) -> str:
    """Format a Markdown table; all columns but the first are aligned to the right."""
    separator = "|---" + "|---:" * (len(columns) - 1) + "|"
    return "\n".join([markdown_row(columns), separator, *map(markdown_row, rows)])


def markdown_row(cells: Sequence[Cell]) -> str:
    """Format one row of a Markdown table."""
    escaped = [_format(cell).replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(_format(cell))}</td>' for cell in row)}</tr>\n"
        for row in table.rows
    )
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return f"<table><tr>{head}</tr>\n{rows}</table>{note}"


def _image(figure: Figure) -> str:
    subtype = "png" if figure.file_name.endswith(".png") else "jpeg"
    data = base64.b64encode(figure.content).decode()
    return f'<img alt="{html.escape(figure.title)}" src="data:image/{subtype};base64,{data}">'
