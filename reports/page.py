"""A report as one HTML file, without scripts and without requests."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Literal

from reports.charts import Chart

Cell = str | int | float

# The file shows untrusted names: should a text ever not be escaped, nothing runs or is loaded.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Table:
    """A table; floats are formatted with three decimals, NaN as a dash.

    Attributes:
        columns: the header.
        rows: the first cell of each is the name of the row.
        caption: above the table.
        note: below the table.
        shares: by column index, a number from 0 to 1 for each row, shown as a bar (``bars``) or as
            a background (``heat``); NaN for none.
        shading: how shares are shown.
        text_columns: indices of columns that are aligned to the left, as the first is.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    note: str = ""
    shares: Mapping[int, Sequence[float]] | None = None
    shading: Literal["bars", "heat"] = "bars"
    text_columns: Sequence[int] = ()

    def html(self) -> str:
        """Return the table in an element that scrolls sideways where it is too wide."""
        shares = self.shares or {}
        classes = [
            ' class="text"' if column in self.text_columns else ""
            for column in range(len(self.columns))
        ]
        head = "".join(
            f'<th scope="col"{kind}>{escape(name)}</th>'
            for kind, name in zip(classes, self.columns, strict=True)
        )
        body = []
        for number, (name, *cells) in enumerate(self.rows):
            row = f'<th scope="row">{escape(format_cell(name))}</th>'
            for column, cell in enumerate(cells, 1):
                share = shares[column][number] if column in shares else float("nan")
                style = "" if share != share else f' style="--share:{min(max(share, 0), 1):.3f}"'
                row += f"<td{classes[column]}{style}>{escape(format_cell(cell))}</td>"
            body.append(f"<tr>{row}</tr>\n")
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return (
            f'<div><div class="scroll" tabindex="0"><table class="{self.shading}">{caption}'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(body)}</tbody></table></div>"
            f"{note}</div>"
        )


@dataclass(frozen=True)
class Drawing:
    """An image with detections, encoded as WebP, and what it shows."""

    caption: str
    webp: bytes
    width_px: int
    height_px: int

    def html(self) -> str:
        """Return a ``figure`` element with the image as a data URI."""
        data = base64.b64encode(self.webp).decode()
        caption = escape(self.caption)
        return (
            f'<figure class="drawing"><figcaption>{caption}</figcaption><img alt="{caption}" '
            f'width="{self.width_px}" height="{self.height_px}" '
            f'src="data:image/webp;base64,{data}"></figure>'
        )


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading; ``note`` is the text under it."""

    title: str
    blocks: Sequence[Table | Chart | Drawing]
    note: str = ""


def render_page(
    title: str,
    summary: Sequence[str],
    highlights: Sequence[tuple[str, Cell]],
    sections: Sequence[Section],
) -> str:
    """Return a complete HTML document; all texts are escaped.

    ``summary``: lines under the title; ``highlights``: names and values of the main results.
    """
    style = files("reports").joinpath("report.css").read_text("utf-8")
    lines = "".join(f"<li>{escape(line)}</li>" for line in summary)
    values = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(format_cell(value))}</dd></div>"
        for name, value in highlights
    )
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections)
    )
    body = "\n".join(_render_section(*numbered) for numbered in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>"
        f'<header><h1>{escape(title)}</h1><ul class="summary">{lines}</ul>'
        f'<dl class="highlights">{values}</dl>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{body}</main>\n<footer>CenterNet Serving</footer></body></html>\n"
    )


def format_cell(cell: Cell) -> str:
    """Return the text of a cell."""
    if not isinstance(cell, float):
        return str(cell)
    return "–" if cell != cell else f"{cell:.3f}"  # noqa: RUF001 (an en dash for NaN)


def _render_section(number: int, section: Section) -> str:
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    blocks = "\n".join(block.html() for block in section.blocks)
    return (
        f'<section aria-labelledby="section-{number}"><h2 id="section-{number}">'
        f'{escape(section.title)}</h2>{note}<div class="blocks">{blocks}</div></section>'
    )
