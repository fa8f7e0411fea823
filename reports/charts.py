"""Line charts as inline SVG; their colours come from the style sheet of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MAX_LINES = 21
"""Lines that can be distinguished: seven colours, each solid, dashed and dotted."""
_COLOURS = 7
_WIDTH, _HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 44
_MARK_HEIGHT = 16
_TICKS = 5


@dataclass(frozen=True)
class Line:
    """A line through ``x`` and ``y``; it is interrupted where y is NaN."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line at ``x``."""

    name: str
    x: float


@dataclass(frozen=True)
class Chart:
    """A line chart with axes from 0 to ``x_max`` and ``y_max``, and a legend.

    ``title``: the caption and the text alternative; at most :data:`MAX_LINES` lines.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    x_max: float = 1.0
    y_max: float = 1.0

    def html(self) -> str:
        """Return a ``figure`` element; all texts are escaped."""
        names = ", ".join(line.name for line in self.lines)
        label = f"{self.title}: {self.y_label} over {self.x_label}; {names}"
        lines = [
            f'<path class="line {_style(index)}" d="{self._path(line)}"/>'
            for index, line in enumerate(self.lines)
        ]
        parts = [*self._axes(), *lines, *map(self._mark, range(len(self.marks)))]
        legend = "".join(
            f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path class="line {_style(index)}" '
            f'd="M0 4H28"/></svg>{escape(line.name)}</li>'
            for index, line in enumerate(self.lines)
        )
        return (
            f'<figure class="chart"><figcaption>{escape(self.title)}</figcaption>'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
            f'{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
        )

    @property
    def _top(self) -> int:
        """Upper end of the axes, below the names of the marks."""
        return _TOP + _MARK_HEIGHT * len(self.marks)

    def _x(self, value: float) -> float:
        return _LEFT + value / self.x_max * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self.y_max * (_HEIGHT - self._top - _BOTTOM)

    def _axes(self) -> list[str]:
        bottom, right = self._y(0), _WIDTH - _RIGHT
        parts = []
        for tick in range(_TICKS + 1):
            x_value, y_value = (limit * tick / _TICKS for limit in (self.x_max, self.y_max))
            x, y = self._x(x_value), self._y(y_value)
            parts += [
                f'<path class="grid" d="M{x:.1f} {self._top}V{bottom}M{_LEFT} {y:.1f}H{right}"/>',
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{x_value:g}</text>',
                f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{y_value:g}</text>',
            ]
        middle_x, middle_y = (_LEFT + right) / 2, (self._top + bottom) / 2
        return [
            *parts,
            f'<path class="axis" d="M{_LEFT} {self._top}V{bottom}H{right}"/>',
            f'<text x="{middle_x}" y="{_HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>",
            f'<text transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>",
        ]

    def _mark(self, index: int) -> str:
        mark = self.marks[index]
        x, y = self._x(mark.x), _TOP + _MARK_HEIGHT * index
        anchor, offset = ("end", -5) if mark.x > self.x_max / 2 else ("start", 5)
        return (
            f'<path class="mark" d="M{x:.1f} {y - 8}V{self._y(0)}"/>'
            f'<text class="name" x="{x + offset:.1f}" y="{y + 2}" text-anchor="{anchor}">'
            f"{escape(mark.name)}</text>"
        )

    def _path(self, line: Line) -> str:
        """Return the ``d`` attribute."""
        path, command = [], "M"
        for x, y in zip(line.x, line.y, strict=True):
            if math.isfinite(y):
                path.append(f"{command}{self._x(x):.1f} {self._y(min(y, self.y_max)):.1f}")
            command = "L" if math.isfinite(y) else "M"
        return "".join(path)


def _style(index: int) -> str:
    return f"c{index % _COLOURS} d{index // _COLOURS}"
