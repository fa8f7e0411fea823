"""Two sets of detections of one image, put side by side.

Detections are matched by class and place, never by rank: two scores that agree to six digits may
change places between two runtimes, and with them every later row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.matching import match_greedily
from model_export.errors import VerificationError

TOLERANCES: Mapping[str, float] = {
    "scores": 1e-4,
    "centers": 1e-3,
    "sizes": 1e-3,
    "keypoints": 1e-3,
    "keypoint_scores": 1e-4,
    "depths": 1e-3,
    "dimensions": 1e-3,
    "rotations": 1e-3,
    "boxes": 1e-3,
    "corner_scores": 1e-4,
}
"""Largest difference accepted per output.

Scores: a hundredth of what a user sees in two decimals. Centers and corners of boxes: in cells;
0.001 cells are 0.004 input pixels. All else is in its own unit (cells, metres), but relative where
the value is above one, because a float32 error grows with it; keypoints count from the center. All
lie well above what two float32 runtimes differ by (about 1e-6 and 1e-5), and below what a wrong
operator, a swapped channel or half precision would do.
"""

NEIGHBOUR_CELLS = 2.0
"""Distance within which two centers can belong to adjacent cells: one, and their offsets."""

MAX_NEIGHBOUR_TIES = 0.05
"""Share of an image's detections that may be peaks on one side only, for the last bit's sake."""

_MAX_REJOINED = 0.01
"""Share of an image's keypoints that may have gone to another peak, or to none.

The upstream rule for keypoints is made of thresholds, and some keypoint always stands on one.
"""

_MAX_ON_THRESHOLD = 0.05
"""Share of an image's pairs of corners that may be possible on one side only.

Whether a pair is possible is decided by thresholds on embeddings, which do not leave the graph,
and by which corners are among the best K.
"""

Detections = Mapping[str, NDArray[Any]]
"""Outputs for one image by name, as the decoders of :mod:`model_package` describe them."""

_Indices = NDArray[np.int64]

Heatmap = NDArray[np.floating[Any]]
"""Scores of the reference per class and cell, (C, H, W)."""


@dataclass(frozen=True)
class Comparison:
    """How well the detections in one image agree; empty places (score 0) are not counted."""

    worst_errors: dict[str, float]
    matched: int
    total: int


def compare(
    reference: Detections,
    candidate: Detections,
    where: str,
    tolerances: Mapping[str, float] = TOLERANCES,
    heatmap: Heatmap | None = None,
) -> Comparison:
    """Match two sets of detections of one image and measure their differences.

    A detection may lack a partner in two cases. Its score lies within the tolerance of the other
    side's lowest: there the cut at K decides. Or, in ``heatmap``, whose peaks the centers are, an
    adjacent cell has the same score within the tolerance: then the last bit decides which of the
    two is the peak, and neither is if a third cell is higher; that is rare, and more than a few in
    one image are an error. Raises :class:`VerificationError`, naming ``where``.
    """
    for detections in (reference, candidate):
        if not all(np.isfinite(values).all() for values in detections.values()):
            raise VerificationError(
                f"{where}: NaN or infinity among the detections. The weights are damaged, or too "
                "large for float32; train again or take another checkpoint."
            )
    kinds = zip(split_kinds(reference), split_kinds(candidate), strict=True)
    return _together([_compare_kind(*kind, where, tolerances, heatmap) for kind in kinds])


def split_kinds(outputs: Detections) -> list[Detections]:
    """Separate pairs of corners and centers; other outputs are of one kind.

    Every kind has ``scores`` (0: an empty place), ``class_ids`` and a place.
    """
    if "boxes" not in outputs:
        return [outputs]
    pairs = {name: outputs[name] for name in ("class_ids", "boxes", "corner_scores")}
    kinds: list[Detections] = [{**pairs, "scores": np.maximum(outputs["scores"], 0.0)}]
    if "centers" in outputs:
        kinds.append(
            {
                "scores": outputs["center_scores"],
                "class_ids": outputs["center_class_ids"],
                "centers": outputs["centers"],
            }
        )
    return kinds


def _together(comparisons: Sequence[Comparison]) -> Comparison:
    """Put all kinds of one image together."""
    worst_errors: dict[str, float] = {}
    for comparison in comparisons:
        for name, error in comparison.worst_errors.items():
            worst_errors[name] = max(error, worst_errors.get(name, 0.0))
    return Comparison(
        worst_errors,
        matched=sum(comparison.matched for comparison in comparisons),
        total=sum(comparison.total for comparison in comparisons),
    )


def _compare_kind(
    reference: Detections,
    candidate: Detections,
    where: str,
    tolerances: Mapping[str, float],
    heatmap: Heatmap | None,
) -> Comparison:
    local, upstream = match(reference, candidate, tolerances["centers"])
    finds = f"{where}: ONNX Runtime"
    _check_unmatched(reference, local, candidate, f"{finds} does not find", tolerances, heatmap)
    _check_unmatched(candidate, upstream, reference, f"{finds} alone finds", tolerances, heatmap)
    worst_errors = {
        name: float(values.max(initial=0.0))
        for name, values in _errors(
            reference, local, candidate, upstream, where, tolerances
        ).items()
    }
    for name, error in worst_errors.items():
        if error > tolerances[name]:
            raise VerificationError(
                f"{where}: {name} differ by {error:.2g}, accepted is {tolerances[name]:.2g}. "
                "The exported file does not compute what the network computes."
            )
    return Comparison(worst_errors, matched=len(local), total=int((reference["scores"] > 0).sum()))


def match(
    reference: Detections, candidate: Detections, radius_cells: float
) -> tuple[_Indices, _Indices]:
    """Match each detection to the nearest unmatched one of its class within ``radius_cells``.

    Returns the indices of the matched detections in ``reference`` and in ``candidate``.
    """
    distances = distances_between(reference, candidate)
    distances[reference["scores"] == 0] = np.inf  # empty places
    distances[:, candidate["scores"] == 0] = np.inf
    return match_greedily(-distances, -radius_cells)


def measure(
    reference: Detections, local: _Indices, candidate: Detections, upstream: _Indices
) -> dict[str, NDArray[np.float64]]:
    """Difference of each output over the pairs, in the terms of :data:`TOLERANCES`."""
    return {
        name: _differences(name, reference, local, candidate, upstream)
        for name in reference
        if name in TOLERANCES
    }


def _differences(
    name: str, reference: Detections, local: _Indices, candidate: Detections, upstream: _Indices
) -> NDArray[np.float64]:
    values = reference[name][local].astype(np.float64)
    differences: NDArray[np.float64] = np.abs(candidate[name][upstream] - values)
    if name in ("scores", "centers", "keypoint_scores", "boxes", "corner_scores"):
        return differences
    if name == "keypoints":
        values = values - reference["centers"][local][:, np.newaxis]
    return differences / np.maximum(np.abs(values), 1.0)


def _errors(
    reference: Detections,
    local: _Indices,
    candidate: Detections,
    upstream: _Indices,
    where: str,
    tolerances: Mapping[str, float],
) -> dict[str, NDArray[np.float64]]:
    """As :func:`measure`, without the few keypoints that went elsewhere."""
    errors = measure(reference, local, candidate, upstream)
    if "keypoints" not in errors:
        return errors
    moved = (errors["keypoints"] > tolerances["keypoints"]).any(axis=2)
    moved |= errors["keypoint_scores"] > tolerances["keypoint_scores"]
    if moved.sum() > max(1, _MAX_REJOINED * moved.size):
        raise VerificationError(
            f"{where}: {moved.sum()} of {moved.size} keypoints are elsewhere. "
            "The exported file does not compute what the network computes."
        )
    errors["keypoints"][moved] = 0.0
    errors["keypoint_scores"][moved] = 0.0
    return errors


def distances_between(a: Detections, b: Detections) -> NDArray[np.float32]:
    """Cells between every two places (len(a), len(b)); infinite between classes."""
    place = "boxes" if "boxes" in a else "centers"
    distances: NDArray[np.float32] = np.abs(a[place][:, np.newaxis] - b[place]).max(axis=2)
    distances[a["class_ids"][:, np.newaxis] != b["class_ids"]] = np.inf
    return distances


def _check_unmatched(
    detections: Detections,
    matched: _Indices,
    others: Detections,
    finding: str,
    tolerances: Mapping[str, float],
    heatmap: Heatmap | None,
) -> None:
    """Raise unless every detection without a partner has an excuse."""
    scores = detections["scores"]
    unmatched = np.ones(len(scores), dtype=bool)
    unmatched[matched] = False
    unmatched &= scores > others["scores"].min() + tolerances["scores"]
    if heatmap is not None and "centers" in detections:
        excused = np.zeros_like(unmatched)
        for row in np.flatnonzero(unmatched).tolist():
            scores_around = _scores_around(heatmap, detections, row)
            excused[row] = _has_a_tie(np.abs(scores_around - scores[row]) <= tolerances["scores"])
        if excused.sum() <= MAX_NEIGHBOUR_TIES * len(unmatched):
            unmatched &= ~excused
    if "boxes" in detections and unmatched.sum() <= max(1, _MAX_ON_THRESHOLD * (scores > 0).sum()):
        return
    if unmatched.any():
        raise VerificationError(
            f"{finding} {unmatched.sum()} detections of the same class and center, the best with "
            f"score {scores[unmatched].max():.4f}. "
            "The exported file does not compute what the network computes."
        )


def _scores_around(heatmap: Heatmap, detections: Detections, row: int) -> Heatmap:
    """What the map of its class says where the detection's cell and that cell's neighbours are."""
    reach = int(NEIGHBOUR_CELLS) + 1
    column, line = np.floor(detections["centers"][row]).astype(int)
    scores = heatmap[detections["class_ids"][row]]
    height, width = scores.shape
    padded = np.pad(scores, reach, constant_values=-np.inf)
    line, column = np.clip((line, column), 0, (height - 1, width - 1))
    around: Heatmap = padded[line : line + 2 * reach + 1, column : column + 2 * reach + 1]
    return around


def _has_a_tie(is_alike: NDArray[np.bool_]) -> bool:
    """Whether two adjacent cells, diagonals included, are both true."""
    around = np.lib.stride_tricks.sliding_window_view(is_alike, (3, 3))
    return bool((around[..., 1, 1] & (around.sum(axis=(2, 3)) > 1)).any())
