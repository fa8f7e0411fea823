"""Figures of the report."""

import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("agg")  # before pyplot: no display is needed

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure as MatplotlibFigure
from numpy.typing import NDArray

from evaluation.report import Figure

_MAX_CURVES = 20
"""Largest number of curves that can be distinguished in one plot."""
_MAX_PRINTED_CLASSES = 12
"""Confusion matrices with more classes have no printed counts."""


def recall_curves(curves: Mapping[str, NDArray[np.float64]], measure: str) -> Figure:
    """Plot precision over recall at IoU (or OKS) 0.5, one line per class."""
    plot, axes = pyplot.subplots(figsize=(7, 5))
    ordered = sorted(curves.items(), key=lambda one: -one[1].mean())
    if len(ordered) > _MAX_CURVES:  # the best and the worst
        half = _MAX_CURVES // 2
        ordered = ordered[:half] + ordered[-half:]
    colours = pyplot.get_cmap("turbo")(np.linspace(0.05, 0.95, max(len(ordered), 1)))
    for (name, precision), colour in zip(ordered, colours, strict=True):
        axes.plot(np.linspace(0, 1, len(precision)), precision, color=colour, label=name)
    omitted = len(curves) - len(ordered)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"{omitted} classes of middle precision are omitted" if omitted else "")
    if ordered:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _to_figure(plot, f"Precision and recall at {measure} 0.5", "recall_curves.png")


def confusion_plot(counts: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """Plot a confusion matrix (classes + 1, classes + 1), coloured by the fraction of the row."""
    names = [*classes, "background"]
    side = min(4 + 0.35 * len(names), 20)
    plot, axes = pyplot.subplots(figsize=(side, side))
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="detected", ylabel="labelled")
    if len(names) <= _MAX_PRINTED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    return _to_figure(plot, title, "confusion.png")


def score_histogram(
    true_positives: NDArray[np.float64], false_positives: NDArray[np.float64], threshold: float
) -> Figure:
    """Plot the distribution of the scores of true and false positives."""
    plot, axes = pyplot.subplots(figsize=(7, 4))
    bins = np.linspace(0, 1, 41).tolist()
    labels = ["true positives", "false positives"]
    axes.hist([true_positives, false_positives], bins=bins, stacked=True, label=labels)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:g}")
    axes.set(xlabel="score", ylabel="detections", yscale="symlog")
    axes.legend()
    return _to_figure(plot, "Scores of true and false positives", "scores.png")


def _to_figure(plot: MatplotlibFigure, title: str, file_name: str) -> Figure:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    pyplot.close(plot)
    return Figure(title, file_name, buffer.getvalue())
