"""Outputs of a graph for one image: their kinds, and the differences between two of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.matching import Indices

Outputs = Mapping[str, NDArray[Any]]
"""By name, without the batch axis, as the decoders of :mod:`model_package` describe them."""

_MATCHED_EXACTLY = frozenset({"class_ids", "center_class_ids"})
"""Class ids, of which no difference is measured: those of matched detections are equal, and those
of centers are equal unless the scores of two classes are."""
_ABSOLUTE = frozenset(
    {"scores", "centers", "keypoint_scores", "boxes", "corner_scores", "center_scores"}
)
_RELATIVE = frozenset({"sizes", "keypoints", "depths", "dimensions", "rotations"})

NEIGHBOUR_CELLS = 2.0
"""Largest distance of two centers in adjacent cells: one cell, and their offsets."""

MAX_NEIGHBOUR_TIES = 0.05
"""Share of an image's detections that may be peaks in only one of the two because of rounding."""


def split_kinds(outputs: Outputs) -> list[Outputs]:
    """Separate corner pairs and centers, and extreme points; other outputs are of one kind.

    Every kind has ``scores`` (0: an empty row), ``class_ids`` and ``boxes`` or ``centers``.
    """
    if "cells" in outputs:
        return _split_extreme_points(outputs)
    if "boxes" not in outputs:
        return [outputs]
    of_centers = {
        "scores": "center_scores",
        "class_ids": "center_class_ids",
        "centers": "centers",
    }
    pairs = {name: values for name, values in outputs.items() if name not in of_centers.values()}
    kinds: list[Outputs] = [{**pairs, "scores": np.maximum(outputs["scores"], 0.0)}]
    if "centers" in outputs:
        kinds.append({name: outputs[output] for name, output in of_centers.items()})
    return kinds


def _split_extreme_points(outputs: Outputs) -> list[Outputs]:
    """Return the four kinds of extreme points, and the pairs of a top and a bottom point.

    A pair has the scores of all centers between its points; its box spans the points.
    """
    scores, class_ids, points = (outputs[name] for name in ("scores", "class_ids", "points"))
    sides: list[Outputs] = [
        {"scores": scores[side], "class_ids": class_ids[side], "centers": points[side]}
        for side in range(4)
    ]
    count = scores.shape[1]
    top, bottom = np.indices((count, count)).reshape(2, -1)
    ends = np.stack((points[0][top], points[2][bottom]))
    corner_scores = np.stack((scores[0][top], scores[2][bottom]), axis=1)
    centers = outputs["center_scores"].reshape(count * count, -1)
    pairs = {
        # 0, an empty row, where no center is possible.
        "scores": corner_scores.mean(axis=1) * centers.any(axis=1),
        "class_ids": class_ids[0][top],
        "boxes": np.hstack((ends.min(axis=0), ends.max(axis=0))),
        "corner_scores": corner_scores,
        "center_scores": centers,
    }
    if "center_class_ids" in outputs:
        pairs["center_class_ids"] = outputs["center_class_ids"].reshape(count * count, -1)
    return [*sides, pairs]


def boxes_in_cells(outputs: Outputs) -> NDArray[np.float64] | None:
    """Return x1, y1, x2, y2 of each row in cells, (rows, 4); None for outputs without boxes."""
    if "boxes" in outputs:
        return outputs["boxes"].astype(np.float64)
    if "sizes" not in outputs:
        return None
    centers, halves = (outputs[name].astype(np.float64) for name in ("centers", "sizes"))
    halves = halves / 2
    return np.hstack((centers - halves, centers + halves))


def distances_between(a: Outputs, b: Outputs) -> NDArray[np.float32]:
    """Return the distances in cells, (len(a), len(b)); infinite between classes."""
    position = "boxes" if "boxes" in a else "centers"
    distances: NDArray[np.float32] = np.abs(a[position][:, np.newaxis] - b[position]).max(axis=2)
    distances[a["class_ids"][:, np.newaxis] != b["class_ids"]] = np.inf
    return distances


def measure(
    reference: Outputs, reference_rows: Indices, candidate: Outputs, candidate_rows: Indices
) -> dict[str, NDArray[np.float64]]:
    """Return the differences of each output over the pairs of rows.

    Scores, centers and corners of boxes: absolute. All others are relative for values above one;
    keypoints are relative to the center. Raises :class:`ValueError` for an unknown output.
    """
    if unknown := sorted(reference.keys() - _ABSOLUTE - _RELATIVE - _MATCHED_EXACTLY):
        raise ValueError(f"the outputs {unknown} are unknown: add them to _ABSOLUTE or _RELATIVE.")
    return {
        name: _differences(name, reference, reference_rows, candidate, candidate_rows)
        for name in reference
        if name not in _MATCHED_EXACTLY
    }


def _differences(
    name: str,
    reference: Outputs,
    reference_rows: Indices,
    candidate: Outputs,
    candidate_rows: Indices,
) -> NDArray[np.float64]:
    values = reference[name][reference_rows].astype(np.float64)
    differences: NDArray[np.float64] = np.abs(candidate[name][candidate_rows] - values)
    if name in _ABSOLUTE:
        return differences
    if name == "keypoints":
        values = values - reference["centers"][reference_rows][:, np.newaxis]
    return differences / np.maximum(np.abs(values), 1.0)


def add_exceptions(exceptions: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of several counts, by reason."""
    total: Counter[str] = Counter()
    for counts in exceptions:
        total.update(counts)
    return {reason: count for reason, count in total.items() if count}
