"""SVG figures of the benchmarks: the same numbers give the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of Okabe and Ito, which people with any colour vision can distinguish."""
MARKERS = ("o", "s", "D", "^", "v", "P")
"""Shapes that distinguish the same series without colours."""

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "svg.fonttype": "none",  # text stays text, in the font of the reader
    "svg.hashsalt": "centernet-serving",  # otherwise the ids of the elements are random
}


@contextmanager
def svg_figure(path: Path, width_in: float, height_in: float) -> Iterator[Figure]:
    """Yield an empty figure, in inches, to draw on; write it after the block.

    The background is opaque, so that the figure is legible on light and on dark pages.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
        yield figure
        # Without the date and the version of Matplotlib.
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
