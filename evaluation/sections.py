"""Sections of the report that show errors, scores and sizes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.coco import CocoScores
from evaluation.metrics.error_kinds import KINDS
from evaluation.metrics.thresholds import BINS, THRESHOLDS, ScoredDetections
from reports.charts import MAX_LINES, Chart, Line, Mark
from reports.page import Cell, Section, Table

_MAX_MATRIX_CLASSES = 20
"""With more classes, the confusions are listed instead."""
_MAX_CONFUSIONS = 20
_SIZES: Mapping[str, tuple[float, float]] = {
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, float("inf")),
}
"""COCO's sizes of objects: the range of their areas in pixels."""


def recall_curves(scores: CocoScores, measure: str) -> Section:
    """Show precision over recall, the mean over the classes and for each class.

    ``measure``: ``IoU`` or ``OKS``.
    """
    names = {"AP": "0.50 to 0.95", "AP50": "0.50", "AP75": "0.75"}
    recalls = (np.arange(101) / 100).tolist()
    mean = [
        Line(f"{measure} {names[key]}: {key} {values.mean():.3f}", recalls, values.tolist())
        for key, values in scores.mean_curves.items()
    ]
    ordered = sorted(scores.curves.items(), key=lambda one: -one[1].mean())
    omitted = max(0, len(ordered) - MAX_LINES)
    if omitted:  # keep the best and the worst
        ordered = ordered[: MAX_LINES // 2] + ordered[MAX_LINES // 2 - MAX_LINES :]
    per_class = [
        Line(f"{name}: {values.mean():.3f}", recalls, values.tolist()) for name, values in ordered
    ]
    note = "The area under a curve is its average precision."
    if omitted:
        note += f" {omitted} classes of middle AP50 are omitted from the curves by class."
    return Section(
        "Precision and recall",
        [
            Chart("Mean over the classes", "recall", "precision", mean),
            Chart(f"By class, at {measure} 0.50", "recall", "precision", per_class),
        ],
        note,
    )


def count_by_size(areas: Sequence[float]) -> dict[str, int]:
    """Return the number of objects of each of COCO's sizes."""
    return {size: sum(low <= area < high for area in areas) for size, (low, high) in _SIZES.items()}


def size_section(title: str, objects: Mapping[str, int], summary: Mapping[str, float]) -> Section:
    """Show AP and AR by the size of objects; COCO does not measure small poses."""
    rows: list[Sequence[Cell]] = [
        [size, objects[size], summary[f"AP{size[0]}"], summary[f"AR{size[0]}"]]
        for size in _SIZES
        if f"AP{size[0]}" in summary
    ]
    note = "COCO's sizes: medium from 32 × 32 pixels, large from 96 × 96 pixels."  # noqa: RUF001
    return Section(title, [_with_bars(["size", "objects", "AP", "AR"], rows, (2, 3))], note)


def error_section(
    gains: Mapping[str, float], counts: Mapping[str, int], threshold: float, ap50: float
) -> Section:
    """Show how much AP50 each kind of error costs, and how often it occurs at the threshold."""
    rows: list[Sequence[Cell]] = [
        [kind, gains[kind], counts[kind], description] for kind, description in KINDS.items()
    ]
    columns = ["kind", "dAP50", f"at score {threshold:g}", "definition"]
    oracles: list[Sequence[Cell]] = [
        ["false positives", gains["false positives"], "every false positive is removed"],
        ["false negatives", gains["false negatives"], "every undetected object is ignored"],
    ]
    note = (
        "Kinds as TIDE defines them (Bolya et al. 2020). dAP50: increase of the AP50 of boxes "
        f"({ap50:.3f}) if all errors of the kind, down to the lowest score, were corrected; the "
        "increases do not add up. The third column counts the errors at the model's score "
        "threshold."
    )
    of_all = ["all", "dAP50", "if"]
    tables = [_with_bars(columns, rows, (1,), (3,)), _with_bars(of_all, oracles, (1,), (2,))]
    return Section("Errors by kind", tables, note)


def confusion_section(
    counts: NDArray[np.int64], classes: Sequence[str], threshold: float
) -> Section:
    """Show a confusion matrix (classes + 1, classes + 1), or the most frequent confusions."""
    names = [*classes, "background"]
    title = f"Confusion matrix at score {threshold:g} and IoU 0.5"
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(classes) <= _MAX_MATRIX_CLASSES:
        rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
        shares = {column: fractions[:, column - 1].tolist() for column in range(1, len(names) + 1)}
        table = Table(["labelled \\ detected", *names], rows, shares=shares, shading="heat")
        note = (
            "Rows are labelled classes, columns detected ones, shaded by the fraction of the row. "
            "The last row counts detections without an object, the last column undetected objects."
        )
        return Section(title, [table], note)
    confused = counts.copy()
    confused[-1] = 0
    confused[:, -1] = 0
    np.fill_diagonal(confused, 0)
    order = np.argsort(-confused, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    pairs = [divmod(int(index), len(names)) for index in order if confused.flat[index]]
    confusions: list[Sequence[Cell]] = [
        [names[row], names[column], int(counts[row, column]), float(fractions[row, column])]
        for row, column in pairs
    ]
    columns = ["labelled", "detected as", "objects", "of its objects"]
    note = "The most frequent confusions of two classes; results.json has all."
    return Section(title, [_with_bars(columns, confusions, (3,))], note)


def score_section(scored: ScoredDetections, threshold: float) -> Section:
    """Show precision, recall and F1 by score threshold, and how precise each score is."""
    curves = dict(zip(("precision", "recall", "F1"), scored.curves().tolist(), strict=True))
    lines = [Line(name, THRESHOLDS.tolist(), values) for name, values in curves.items()]
    best = scored.best_threshold()
    marks = [Mark(f"model: {threshold:g}", threshold)]
    if best == best:
        marks.append(Mark(f"highest F1: {best:g}", best))
    bins = scored.calibration()
    filled = bins[bins[:, 0] > 0]
    calibration = [
        Line("detections", filled[:, 1].tolist(), filled[:, 2].tolist()),
        Line("precision = score", [0, 1], [0, 1]),
    ]
    rows: list[Sequence[Cell]] = [
        [f"{index / BINS:g} to {(index + 1) / BINS:g}", int(count), mean, precision]
        for index, (count, mean, precision) in enumerate(bins.tolist())
    ]
    columns = ["score", "detections", "mean score", "precision"]
    note = (
        "A detection is correct if it matches an object of its class with an IoU of at least 0.5, "
        "in descending order of score."
    )
    return Section(
        "Scores",
        [
            Chart("By score threshold", "score threshold", "", lines, marks),
            Chart("Calibration", "mean score", "precision", calibration),
            _with_bars(columns, rows, (3,), caption="By score"),
        ],
        note,
    )


def _with_bars(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    bars: Sequence[int],
    text_columns: Sequence[int] = (),
    caption: str = "",
    note: str = "",
) -> Table:
    """Return a table in which the columns ``bars``, from 0 to 1, are shown as bars, too."""
    shares = {column: [float(row[column]) for row in rows] for column in bars}
    return Table(columns, rows, caption, note, shares, text_columns=text_columns)


def class_table(
    scores: CocoScores, scored: Mapping[str, ScoredDetections], threshold: float
) -> Table:
    """Return AP by class, and precision, recall and F1 at the threshold."""
    rows: list[Sequence[Cell]] = [
        [
            name,
            scored[name].objects,
            *values,
            *scored[name].at(threshold),
            f"{scored[name].best_threshold():g}",
        ]
        for name, values in scores.per_class.items()
    ]
    columns = ["class", "objects", "AP", "AP50", "AP75", "precision", "recall", "F1", "best score"]
    note = (
        f"Precision, recall and F1 at score {threshold:g} and IoU 0.5; best score: the threshold "
        "with the highest F1."
    )
    return _with_bars(columns, rows, (2, 3, 4), caption="By class", note=note)
