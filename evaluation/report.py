"""A report of tables and figures: Markdown with PNG files, and one HTML file with everything."""

import base64
import html
import json
import shutil
from collections.abc import Mapping, Sequence
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
    """Rows of cells under ``columns``; floats are shown with three decimals, NaN as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An encoded image; ``file_name`` ends in its format."""

    title: str
    file_name: str
    content: bytes


@dataclass
class Report:
    """Everything that was found out; ``numbers`` and ``rows`` are for programs.

    ``rows``: the detections in COCO's result format.
    """

    title: str
    lines: Sequence[str] = ()
    parts: list[Table | Figure] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()

    def markdown(self) -> str:
        """The report as Markdown; figures are files beside it."""
        blocks = [f"# {self.title}", "\n".join(f"- {line}" for line in self.lines)]
        for part in self.parts:
            blocks.append(f"## {part.title}")
            if isinstance(part, Figure):
                blocks.append(f"![{part.title}]({part.file_name})")
                continue
            header = [_row(part.columns), "|---" + "|---:" * (len(part.columns) - 1) + "|"]
            blocks.append("\n".join(header + [_row(row) for row in part.rows]))
            blocks += [part.note] if part.note else []
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        """The report as one page that needs nothing else."""
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.lines)
        body = [f"<h1>{html.escape(self.title)}</h1><ul>{lines}</ul>"]
        for part in self.parts:
            body.append(f"<h2>{html.escape(part.title)}</h2>")
            body.append(_image(part) if isinstance(part, Figure) else _html_table(part))
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n<body>"
            + "\n".join(body)
            + "</body></html>\n"
        )


def check_output(output: Path) -> None:
    """Raise :class:`EvaluationError` where the report could not be written, before the work."""
    if output.exists():
        raise EvaluationError(f"--output {output}: it is there already. Name a new directory.")
    if not output.absolute().parent.is_dir():
        raise EvaluationError(f"--output {output}: there is no directory {output.parent}.")


def write_report(report: Report, output: Path) -> None:
    """Write the directory under another name and rename it, so that it is there whole or not."""
    partial = output.absolute().with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        (partial / "report.md").write_text(report.markdown())
        (partial / "report.html").write_text(report.html())
        # NaN is no JSON.
        numbers = json.loads(json.dumps(report.numbers), parse_constant=lambda _: None)
        (partial / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
        (partial / "detections.json").write_text(json.dumps(report.rows) + "\n")
        for part in report.parts:
            if isinstance(part, Figure):
                (partial / part.file_name).write_bytes(part.content)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _shown(cell: Cell) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "–" if cell != cell else f"{cell:.3f}"  # noqa: RUF001 (a dash for what is not a number)


def _row(cells: Sequence[Cell]) -> str:
    escaped = [_shown(cell).replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(_shown(cell))}</td>' for cell in row)}</tr>\n"
        for row in table.rows
    )
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return f"<table><tr>{head}</tr>\n{rows}</table>{note}"


def _image(figure: Figure) -> str:
    kind = "png" if figure.file_name.endswith(".png") else "jpeg"
    data = base64.b64encode(figure.content).decode()
    return f'<img alt="{html.escape(figure.title)}" src="data:image/{kind};base64,{data}">'
