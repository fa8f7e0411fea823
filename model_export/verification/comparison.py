"""Comparison of two sets of detections of one image.

Outputs are matched by class and position, never by rank: two scores that agree to six digits
may be ranked differently by two runtimes, which shifts every later row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.matching import match_greedily
from labels.outputs import (
    MAX_NEIGHBOUR_TIES,
    NEIGHBOUR_CELLS,
    Outputs,
    add_exceptions,
    distances_between,
    measure,
    split_kinds,
)
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
    "center_scores": 1e-4,
}
"""Largest accepted difference per output.

Scores: absolute, 1e-4. Centers and corners of boxes: in cells; 0.001 cells are 0.004 input pixels.
All others are in their own unit (cells, metres), but relative for values above one, because float32
errors grow with the value; keypoints are relative to the center. All lie well above the
differences between two float32 runtimes (about 1e-6 and 1e-5), and below the effect of a wrong
operator, a swapped channel or fp16.
"""

_MAX_REASSIGNED = 0.01
"""Share of an image's keypoints that may have been assigned to another peak, or to none.

The upstream rule for keypoints consists of thresholds, and some keypoints always lie on one.
"""

_MAX_ON_THRESHOLD = 0.05
"""Share of an image's corner pairs that may be valid in only one of the two.

This depends on a threshold on embeddings, which are not graph outputs, and on the top-K corners.
"""

EXCEPTIONS: Mapping[str, str] = {
    "top_k_limit": "whose score is nearly the lowest that top_k keeps: rounding decides which are "
    "kept",
    "adjacent_cells": "beside a cell of nearly the same score: rounding decides which is the peak",
    "corner_threshold": "whose corners are at the threshold for a pair, or at the limit of corners",
    "beyond_tolerance": "that differ by more than the tolerances, within the accepted share",
    "keypoint_assignment": "keypoints at the threshold for another peak, within the accepted share",
    "keypoint_beyond_tolerance": "keypoints that differ by more than the tolerances, within the "
    "accepted share",
}
"""What is accepted without a match, by reason; scores are nearly equal within their tolerance."""

_Indices = NDArray[np.int64]

Heatmap = NDArray[np.floating[Any]]
"""Scores of the reference by class and cell, (C, H, W)."""


@dataclass(frozen=True)
class Comparison:
    """Result for one image; empty rows (score 0) are not counted.

    ``exceptions``: what was accepted without a match, by the names in :data:`EXCEPTIONS`.
    """

    worst_errors: dict[str, float]
    matched: int
    total: int
    exceptions: Mapping[str, int]


def compare(
    reference: Outputs,
    candidate: Outputs,
    where: str,
    tolerances: Mapping[str, float] = TOLERANCES,
    heatmap: Heatmap | None = None,
) -> Comparison:
    """Match two sets of detections of one image and measure their differences.

    A detection may be unmatched in two cases. Its score is within the tolerance of the lowest score
    of the other side, so that the top-K limit decides. Or an adjacent cell in ``heatmap``, whose
    peaks are the centers, has the same score within the tolerance, so that rounding decides which
    of the two is the peak, or neither if a third cell is higher; this is rare, and more than a few
    in one image are an error. Raises :class:`VerificationError`, naming ``where``.
    """
    for detections in (reference, candidate):
        check_finite(detections, where)
    kinds = zip(split_kinds(reference), split_kinds(candidate), strict=True)
    return _combine([_compare_kind(*kind, where, tolerances, heatmap) for kind in kinds])


def check_finite(detections: Outputs, where: str) -> None:
    """Raise :class:`VerificationError` if a value is NaN or infinite."""
    if not all(np.isfinite(values).all() for values in detections.values()):
        raise VerificationError(
            f"{where}: the detections contain NaN or infinity. The weights are damaged or "
            "overflow float32; train again or use another checkpoint."
        )


def _combine(comparisons: Sequence[Comparison]) -> Comparison:
    """Combine the comparisons of all kinds of one image."""
    worst_errors: dict[str, float] = {}
    for comparison in comparisons:
        for name, error in comparison.worst_errors.items():
            worst_errors[name] = max(error, worst_errors.get(name, 0.0))
    return Comparison(
        worst_errors,
        matched=sum(comparison.matched for comparison in comparisons),
        total=sum(comparison.total for comparison in comparisons),
        exceptions=add_exceptions(comparison.exceptions for comparison in comparisons),
    )


def _compare_kind(
    reference: Outputs,
    candidate: Outputs,
    where: str,
    tolerances: Mapping[str, float],
    heatmap: Heatmap | None,
) -> Comparison:
    reference_rows, candidate_rows = match(reference, candidate, tolerances["centers"])
    exceptions = _check_unmatched(
        reference,
        reference_rows,
        candidate,
        f"{where}: ONNX Runtime does not find",
        tolerances,
        heatmap,
    )
    _check_unmatched(
        candidate,
        candidate_rows,
        reference,
        f"{where}: only ONNX Runtime finds",
        tolerances,
        heatmap,
    )
    errors, moved_keypoints = _errors(
        reference, reference_rows, candidate, candidate_rows, where, tolerances
    )
    worst_errors = {name: float(values.max(initial=0.0)) for name, values in errors.items()}
    for name, error in worst_errors.items():
        if error > tolerances[name]:
            raise VerificationError(
                f"{where}: {name} differ by {error:.2g}, accepted is {tolerances[name]:.2g}. "
                "The exported file does not reproduce the network."
            )
    return Comparison(
        worst_errors,
        matched=len(reference_rows),
        total=int((reference["scores"] > 0).sum()),
        exceptions={**exceptions, "keypoint_assignment": moved_keypoints},
    )


def match(reference: Outputs, candidate: Outputs, radius_cells: float) -> tuple[_Indices, _Indices]:
    """Match each detection to the nearest unmatched one of its class within ``radius_cells``.

    Returns the indices of the matched detections in ``reference`` and in ``candidate``.
    """
    distances = distances_between(reference, candidate)
    distances[reference["scores"] == 0] = np.inf  # empty rows
    distances[:, candidate["scores"] == 0] = np.inf
    return match_greedily(-distances, -radius_cells)


def _errors(
    reference: Outputs,
    reference_rows: _Indices,
    candidate: Outputs,
    candidate_rows: _Indices,
    where: str,
    tolerances: Mapping[str, float],
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Like :func:`measure`, without the few keypoints that were assigned to other peaks.

    Also returns the number of these.
    """
    errors = measure(reference, reference_rows, candidate, candidate_rows)
    if "keypoints" not in errors:
        return errors, 0
    moved = (errors["keypoints"] > tolerances["keypoints"]).any(axis=2)
    moved |= errors["keypoint_scores"] > tolerances["keypoint_scores"]
    if moved.sum() > max(1, _MAX_REASSIGNED * moved.size):
        raise VerificationError(
            f"{where}: {moved.sum()} of {moved.size} keypoints differ. "
            "The exported file does not reproduce the network."
        )
    errors["keypoints"][moved] = 0.0
    errors["keypoint_scores"][moved] = 0.0
    return errors, int(moved.sum())


def _check_unmatched(
    detections: Outputs,
    matched: _Indices,
    others: Outputs,
    finding: str,
    tolerances: Mapping[str, float],
    heatmap: Heatmap | None,
) -> dict[str, int]:
    """Count the exceptions of :func:`compare`; raise if another detection is unmatched."""
    scores = detections["scores"]
    unmatched = scores > 0
    unmatched[matched] = False
    at_limit = unmatched & (scores <= others["scores"].min() + tolerances["scores"])
    unmatched &= ~at_limit
    exceptions = {"top_k_limit": int(at_limit.sum())}
    if heatmap is not None and "centers" in detections:
        exempt = np.zeros_like(unmatched)
        for row in np.flatnonzero(unmatched).tolist():
            scores_around = _scores_around(heatmap, detections, row)
            exempt[row] = _has_tie(np.abs(scores_around - scores[row]) <= tolerances["scores"])
        if exempt.sum() <= MAX_NEIGHBOUR_TIES * len(unmatched):
            unmatched &= ~exempt
            exceptions["adjacent_cells"] = int(exempt.sum())
    if "boxes" in detections and unmatched.sum() <= max(1, _MAX_ON_THRESHOLD * (scores > 0).sum()):
        exceptions["corner_threshold"] = int(unmatched.sum())
    elif unmatched.any():
        raise VerificationError(
            f"{finding} {unmatched.sum()} detections of the same class and center, the best with "
            f"score {scores[unmatched].max():.4f}. "
            "The exported file does not reproduce the network."
        )
    return exceptions


def _scores_around(heatmap: Heatmap, detections: Outputs, row: int) -> Heatmap:
    """Return the scores of the detection's class map around its cell."""
    reach = int(NEIGHBOUR_CELLS) + 1
    column, line = np.floor(detections["centers"][row]).astype(int)
    scores = heatmap[detections["class_ids"][row]]
    height, width = scores.shape
    padded = np.pad(scores, reach, constant_values=-np.inf)
    line, column = np.clip((line, column), 0, (height - 1, width - 1))
    around: Heatmap = padded[line : line + 2 * reach + 1, column : column + 2 * reach + 1]
    return around


def _has_tie(is_alike: NDArray[np.bool_]) -> bool:
    """Return whether two adjacent cells, diagonals included, are both true."""
    around = np.lib.stride_tricks.sliding_window_view(is_alike, (3, 3))
    return bool((around[..., 1, 1] & (around.sum(axis=(2, 3)) > 1)).any())
