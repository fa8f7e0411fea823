"""Comparison of the detections in the outputs of two engines, which round differently.

Rounding changes every number slightly and the order of rows with nearly equal scores, so detections
match if they have the same class and nearly the same box and values.

The exporter compares fp16 and int8 files in this way before it adds them to a package, and the
service an engine before it uses it, within the same limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labels.matching import Indices, box_iou, match_greedily
from labels.outputs import (
    MAX_NEIGHBOUR_TIES,
    NEIGHBOUR_CELLS,
    Outputs,
    add_exceptions,
    boxes_in_cells,
    distances_between,
    measure,
    split_kinds,
)


@dataclass(frozen=True)
class AgreementLimits:
    """Largest differences of detections that match, and the smallest share that must match."""

    score: float
    """Of the scores of detections, keypoints and corners."""
    overlap: float
    """1 - IoU of the boxes."""
    value: float
    """Of other values: keypoints as a fraction of the longer side of the box, depths (metres),
    dimensions (metres) and raw rotations, relative for values above one."""
    min_share: float
    """Of the detections, and of the keypoints of matched detections."""
    min_count: int
    """Fewest detections that must be compared."""
    from_threshold: bool
    """Compare only detections from the model's score threshold."""

    def min_score(self, score_threshold: float) -> float:
        """Return the smallest score of the detections that are compared."""
        return score_threshold if self.from_threshold else 0.0

    def tolerances(self) -> Mapping[str, float]:
        """Return the largest difference by output; ``overlap`` stands for boxes.

        Centers of *Keypoint Triplets*, which have no box, may move by as many cells as change the
        IoU of a box 20 cells wide by ``overlap``.
        """
        return {
            "overlap": self.overlap,
            "centers": 10 * self.overlap,
            **dict.fromkeys(
                ("scores", "corner_scores", "center_scores", "keypoint_scores"), self.score
            ),
            **dict.fromkeys(("keypoints", "depths", "dimensions", "rotations"), self.value),
        }


AGREEMENT_LIMITS: Mapping[str, AgreementLimits] = {
    "fp32": AgreementLimits(
        score=0.001, overlap=0.01, value=0.01, min_share=0.95, min_count=0, from_threshold=False
    ),
    "fp16": AgreementLimits(
        score=0.01, overlap=0.01, value=0.02, min_share=0.99, min_count=1, from_threshold=False
    ),
    "bf16": AgreementLimits(
        score=0.01, overlap=0.03, value=0.05, min_share=0.9, min_count=5, from_threshold=True
    ),
    "int8": AgreementLimits(
        score=0.05, overlap=0.1, value=0.05, min_share=0.9, min_count=5, from_threshold=True
    ),
}
"""Limits by precision.

int8 has 8 significant bits like bf16, but one scale for all values of a layer, so small values have
fewer. A score may move by half of the steps in which thresholds are usually set. AP uses ten IoU
thresholds at intervals of 0.05: a box that overlaps its counterpart by 0.9 changes its result at
few of them. Keypoints, depths, dimensions and rotations have no more room than in bf16, nor has the
share of the detections that must match.

bf16 and int8 are compared from the score threshold. Sizes, depths, rotations and keypoints are
trained at the centers of objects only; elsewhere their values are arbitrary, and rounding changes
them more. In fp32 and fp16 they hardly change there either, so that all detections are compared.
"""

SCORE_TOLERANCES: Mapping[str, float] = {"fp32": 0.02, "fp16": 0.02, "bf16": 0.02, "int8": 0.1}
"""Largest accepted difference of a sorted score, by precision: twice what fp16 and int8 may change
a score by. Defects change scores by far more."""

SAME_SIDES_CELLS = 0.02
"""Boxes whose sides differ by at most this match, whatever their IoU: a shift of 0.08 pixels
reduces the IoU of a box that is 16 pixels wide to 0.99, and that of a very thin box to 0."""

_Errors = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Counts over one or more images."""

    found: int
    """Compared detections of the reference."""
    matched: int
    lost: int
    """Unmatched detections without an exception; the larger count of the two sides."""
    unmatched: Mapping[str, int]
    """Unmatched detections of the reference by reason: ``top_k_limit``, ``adjacent_cells``,
    ``beyond_tolerance``."""
    keypoints: int
    keypoints_matched: int
    worst_errors: Mapping[str, float]
    """Over matched detections and keypoints, by the names of :meth:`AgreementLimits.tolerances`."""

    @property
    def compared(self) -> int:
        """Matched and lost detections."""
        return self.matched + self.lost

    @property
    def matched_fraction(self) -> float:
        """Matched share of detections or keypoints, whichever is smaller."""
        detections = self.matched / max(1, self.compared)
        return min(detections, self.keypoints_matched / self.keypoints if self.keypoints else 1.0)

    def is_within(self, limits: AgreementLimits) -> bool:
        """Return whether enough detections were compared, and enough of them match."""
        if self.compared < limits.min_count:
            return False
        return self.compared == 0 or self.matched_fraction >= limits.min_share


def compare_outputs(
    reference: Outputs, candidate: Outputs, limits: AgreementLimits, score_threshold: float
) -> Agreement:
    """Match the detections of one image (``candidate``) with those of the reference engine.

    With ``limits.from_threshold``, detections with a score below ``score_threshold`` are not
    compared, but others may match them. An unmatched detection is lost, with two exceptions: the
    top-K limit decides about it or one of its corners, or, for a few, rounding decides which of two
    adjacent cells is the peak. Values must be finite.
    """
    min_score = limits.min_score(score_threshold)
    kinds = zip(split_kinds(reference), split_kinds(candidate), strict=True)
    return combine_agreements([_compare_kind(*kind, limits, min_score) for kind in kinds])


def squared_errors(
    reference: Outputs, candidate: Outputs, limits: AgreementLimits, score_threshold: float
) -> NDArray[np.float64]:
    """Return the squared error of each compared detection of ``reference``, from 0 to 1.

    It is the mean over the outputs, of errors relative to ``limits`` and at most 1; 1 for a
    detection that ``candidate`` does not have. Detections are compared as in
    :func:`compare_outputs`; nothing is excepted.
    """
    min_score = limits.min_score(score_threshold)
    tolerances = limits.tolerances()
    parts = []
    for one, other in zip(split_kinds(reference), split_kinds(candidate), strict=True):
        rows, _, errors = _match(one, other, limits)
        squares = [
            np.square(np.minimum(values / tolerances[name], 1)).reshape(len(rows), -1).mean(axis=1)
            for name, values in errors.items()
        ]
        of_rows = np.ones(len(one["scores"]))
        of_rows[rows] = np.mean(squares, axis=0)
        parts.append(of_rows[_is_compared(one, min_score)])
    return np.concatenate(parts)


def combine_agreements(agreements: Sequence[Agreement]) -> Agreement:
    """Sum the counts and take the worst errors."""
    worst_errors: dict[str, float] = {}
    for agreement in agreements:
        for name, error in agreement.worst_errors.items():
            worst_errors[name] = max(error, worst_errors.get(name, 0.0))
    return Agreement(
        found=sum(one.found for one in agreements),
        matched=sum(one.matched for one in agreements),
        lost=sum(one.lost for one in agreements),
        unmatched=add_exceptions(one.unmatched for one in agreements),
        keypoints=sum(one.keypoints for one in agreements),
        keypoints_matched=sum(one.keypoints_matched for one in agreements),
        worst_errors=worst_errors,
    )


def _compare_kind(
    reference: Outputs, candidate: Outputs, limits: AgreementLimits, min_score: float
) -> Agreement:
    tolerances = limits.tolerances()
    reference_rows, candidate_rows, errors = _match(reference, candidate, limits)
    keypoint_errors = [
        errors.pop(name) for name in ("keypoints", "keypoint_scores") if name in errors
    ]
    same = np.ones(len(reference_rows), dtype=bool)
    for name, values in errors.items():
        same &= _worst_per_row(values) <= tolerances[name]
    unmatched = _unmatched(reference, reference_rows[same], candidate, limits, min_score)
    only_in_candidate = _unmatched(candidate, candidate_rows[same], reference, limits, min_score)
    same &= reference["scores"][reference_rows] >= min_score
    worst_errors = {name: float(values[same].max(initial=0.0)) for name, values in errors.items()}
    keypoints = keypoints_matched = 0
    if keypoint_errors:
        keypoint_distances, score_errors = (values[same] for values in keypoint_errors)
        agrees = (keypoint_distances <= limits.value) & (score_errors <= limits.score)
        keypoints, keypoints_matched = agrees.size, int(agrees.sum())
        worst_errors["keypoints"] = float(keypoint_distances[agrees].max(initial=0.0))
        worst_errors["keypoint_scores"] = float(score_errors[agrees].max(initial=0.0))
    return Agreement(
        found=int(_is_compared(reference, min_score).sum()),
        matched=int(same.sum()),
        lost=max(side["beyond_tolerance"] for side in (unmatched, only_in_candidate)),
        unmatched=unmatched,
        keypoints=keypoints,
        keypoints_matched=keypoints_matched,
        worst_errors=worst_errors,
    )


def _match(
    reference: Outputs, candidate: Outputs, limits: AgreementLimits
) -> tuple[Indices, Indices, dict[str, _Errors]]:
    """Match rows by position within its tolerance; return them and their errors by output."""
    position, distances = _position_distances(reference, candidate, limits.overlap)
    rows = match_greedily(-distances, -limits.tolerances()[position])
    errors = {
        position: distances[rows],
        **_value_errors(reference, rows[0], candidate, rows[1]),
    }
    return *rows, errors


def _is_compared(outputs: Outputs, min_score: float) -> NDArray[np.bool_]:
    scores = outputs["scores"]
    is_compared: NDArray[np.bool_] = (scores > 0) & (scores >= min_score)  # 0: an empty row
    return is_compared


def _position_distances(
    reference: Outputs, candidate: Outputs, overlap: float
) -> tuple[str, _Errors]:
    """Return the kind of distance and its matrix; infinite between classes and for empty rows."""
    boxes = boxes_in_cells(reference), boxes_in_cells(candidate)
    if boxes[0] is None or boxes[1] is None:
        position = "centers"
        distances = np.abs(reference[position][:, np.newaxis] - candidate[position]).max(axis=2)
    else:
        position = "overlap"
        distances = 1.0 - box_iou(boxes[0], boxes[1])
        sides = np.abs(boxes[0][:, np.newaxis] - boxes[1]).max(axis=2)
        close = sides <= SAME_SIDES_CELLS
        distances[close] = np.minimum(distances[close], overlap)
    distances = distances.astype(np.float64)
    distances[reference["class_ids"][:, np.newaxis] != candidate["class_ids"]] = np.inf
    distances[reference["scores"] <= 0] = np.inf  # empty rows
    distances[:, candidate["scores"] <= 0] = np.inf
    return position, distances


def _value_errors(
    reference: Outputs, reference_rows: Indices, candidate: Outputs, candidate_rows: Indices
) -> dict[str, _Errors]:
    """Return all differences except the position's."""
    errors = measure(reference, reference_rows, candidate, candidate_rows)
    for position in ("boxes", "centers", "sizes"):
        errors.pop(position, None)
    if "keypoints" in errors:
        keypoints = (
            side["keypoints"][rows]
            for side, rows in ((reference, reference_rows), (candidate, candidate_rows))
        )
        longer_sides = reference["sizes"][reference_rows].max(axis=1)[:, np.newaxis]
        difference = np.subtract(*keypoints).astype(np.float64)
        errors["keypoints"] = np.abs(difference).max(axis=2) / longer_sides
    return errors


def _worst_per_row(values: _Errors) -> _Errors:
    worst: _Errors = values.max(axis=tuple(range(1, values.ndim)), initial=0.0)
    return worst


def _unmatched(
    outputs: Outputs, matched: Indices, others: Outputs, limits: AgreementLimits, min_score: float
) -> Mapping[str, int]:
    """Count unmatched detections by reason; see :func:`compare_outputs`."""
    scores = outputs["scores"]
    unmatched = _is_compared(outputs, min_score)
    compared = int(unmatched.sum())
    unmatched[matched] = False
    at_limit = scores <= max(others["scores"].min(), 0.0) + limits.score
    if "corner_scores" in outputs:
        lowest = others["corner_scores"].min(axis=0)
        at_limit |= (outputs["corner_scores"] <= lowest + limits.score).any(axis=1)
    at_limit &= unmatched
    unmatched &= ~at_limit
    distances = distances_between(outputs, others)
    # Below half a cell it is the same peak with another box: an error, not a tie.
    ties = (distances >= 0.5) & (distances <= NEIGHBOUR_CELLS)
    ties &= np.abs(scores[:, np.newaxis] - others["scores"]) <= limits.score
    exempt = unmatched & ties.any(axis=1)
    if exempt.sum() > MAX_NEIGHBOUR_TIES * compared:
        exempt[:] = False
    return {
        "top_k_limit": int(at_limit.sum()),
        "adjacent_cells": int(exempt.sum()),
        "beyond_tolerance": int((unmatched & ~exempt).sum()),
    }
