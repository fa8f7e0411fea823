"""The report's figures."""

import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("agg")  # before pyplot: no display is needed

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from evaluation.report import Figure

_MOST_CLASSES = 20
"""More curves than these cannot be told apart."""
_MOST_NUMBERS = 12
"""A confusion matrix of more classes has colours only."""


def recall_curves(curves: Mapping[str, NDArray[np.float64]], measure: str) -> Figure:
    """Precision over recall at IoU (or OKS) 0.5, one line per class."""
    canvas, axes = pyplot.subplots(figsize=(7, 5))
    ordered = sorted(curves.items(), key=lambda one: -one[1].mean())
    if len(ordered) > _MOST_CLASSES:  # the best and the worst
        half = _MOST_CLASSES // 2
        ordered = ordered[:half] + ordered[-half:]
    colours = pyplot.get_cmap("turbo")(np.linspace(0.05, 0.95, max(len(ordered), 1)))
    for (name, precision), colour in zip(ordered, colours, strict=True):
        axes.plot(np.linspace(0, 1, len(precision)), precision, color=colour, label=name)
    left_out = len(curves) - len(ordered)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"{left_out} classes in the middle are left out" if left_out else "")
    if ordered:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _as_person(canvas, f"Precision and recall at {measure} 0.5", "recall_curves.png")


def confusion(counts: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """Counts (classes + 1, classes + 1), coloured by their part of the row."""
    names = [*classes, "nothing"]
    side = min(4 + 0.35 * len(names), 20)
    canvas, axes = pyplot.subplots(figsize=(side, side))
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="found", ylabel="labelled")
    if len(names) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if parts[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    return _as_person(canvas, title, "confusion.png")


def score_histogram(
    right: NDArray[np.float64], wrong: NDArray[np.float64], threshold: float
) -> Figure:
    """How scores of right and wrong detections are distributed."""
    canvas, axes = pyplot.subplots(figsize=(7, 4))
    bins = np.linspace(0, 1, 41).tolist()
    axes.hist([right, wrong], bins=bins, stacked=True, label=["right", "wrong"])
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:g}")
    axes.set(xlabel="score", ylabel="detections", yscale="symlog")
    axes.legend()
    return _as_person(canvas, "Scores of right and wrong detections", "scores.png")


def _as_person(canvas: Canvas, title: str, file_name: str) -> Figure:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    pyplot.close(canvas)
    return Figure(title, file_name, buffer.getvalue())
