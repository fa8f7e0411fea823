"""Verification of an fp16 file against the fp32 file, on detections.

fp16 changes every number slightly, so detections match if they have the same class and nearly the
same box and score.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from labels.matching import box_iou, match_greedily
from model_export.errors import Fp16Error
from model_export.verification.comparison import (
    MAX_NEIGHBOUR_TIES,
    NEIGHBOUR_CELLS,
    Detections,
    add_exceptions,
    distances_between,
    measure,
    split_kinds,
)
from model_export.verification.fp16_rounding import with_explicit_rounding
from model_export.verification.onnx_vs_torch import Image, Run, onnx_runner, run_on_all
from model_package import Verification
from model_package.onnxruntime import load_onnxruntime

ort = load_onnxruntime()

TOLERANCES: Mapping[str, float] = {
    "overlap": 0.01,
    "scores": 0.01,
    "centers": 0.1,
    "corner_scores": 0.01,
    "keypoints": 0.02,
    "keypoint_scores": 0.01,
    "depths": 0.02,
    "dimensions": 0.02,
    "rotations": 0.02,
}
"""Largest accepted differences of a match.

``overlap``: 1 - IoU of the boxes. Scores: one unit of the second decimal. Centers (of *Keypoint
Triplets*, which have no box): in cells. Keypoints: as a fraction of the longer box side. Depths,
dimensions and rotations: in metres and raw values, relative for values above one.
"""

SAME_SIDES_CELLS = 0.02
"""Boxes whose sides differ by at most this match, whatever their IoU: a shift of 0.08 pixels
reduces the IoU of a box that is 16 pixels wide to 0.99, and that of a very thin box to 0."""

MIN_MATCHED_FRACTION = 0.99
"""Smallest accepted share of detections, and of the keypoints of matched detections."""

MIN_COMPARED_FRACTION = 0.5
"""Share of the fp32 file's detections that must match; ties alone verify nothing."""

_Errors = NDArray[np.float64]
_Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """Counts over one or more images."""

    found: int
    """Detections of the fp32 file."""
    matched: int
    lost: int
    """Unmatched detections without an exception; the larger count of the two sides."""
    unmatched: Mapping[str, int]
    """Unmatched detections of the fp32 file by reason, as in
    :data:`model_export.verification.comparison.EXCEPTIONS`."""
    keypoints: int
    keypoints_matched: int
    worst_errors: Mapping[str, float]
    """Over matched detections and keypoints, by the names in :data:`TOLERANCES`."""

    @property
    def matched_fraction(self) -> float:
        """Matched share of detections or keypoints, whichever is smaller."""
        detections = self.matched / max(1, self.matched + self.lost)
        return min(detections, self.keypoints_matched / self.keypoints if self.keypoints else 1.0)


def verify_fp16(
    fp16_file: Path, fp32_file: Path, output_names: Sequence[str], images: Sequence[Image]
) -> Verification:
    """Compare the detections of both files in ONNX Runtime on ``images``.

    The fp16 file runs twice: unchanged, and with explicit rounding, an upper bound of the rounding
    on a GPU (see :mod:`model_export.verification.fp16_rounding`). Raises :class:`Fp16Error` if too
    few detections match in either run.
    """
    run = onnx_runner(fp32_file, output_names)
    references = [run(image[np.newaxis])[0] for image in images]
    del run  # large networks: only one session in memory
    agreements = []
    for run_fp16 in _fp16_runners(fp16_file, output_names):
        agreements.append(_compare_all(references, run_fp16, images))
        _check(agreements[-1])
    worst = min(agreements, key=lambda agreement: agreement.matched_fraction)
    names = worst.worst_errors
    return Verification(
        reference=f"{fp32_file.name}, fp32, ONNX Runtime {ort.__version__}, CPU",
        inputs=len(images),
        tolerances={name: TOLERANCES[name] for name in names},
        worst_errors={name: max(one.worst_errors[name] for one in agreements) for name in names},
        matched_fraction=worst.matched_fraction,
        detections=worst.found,
        matched=worst.matched,
        exceptions=add_exceptions(
            [
                worst.unmatched,
                {"keypoint_beyond_tolerance": worst.keypoints - worst.keypoints_matched},
            ]
        ),
    )


def _fp16_runners(fp16_file: Path, output_names: Sequence[str]) -> Iterator[Run]:
    yield onnx_runner(fp16_file, output_names)
    rounding = with_explicit_rounding(onnx.load(fp16_file)).SerializeToString()
    yield onnx_runner(rounding, output_names)


def _compare_all(references: Sequence[Detections], run: Run, images: Sequence[Image]) -> Agreement:
    """Compare every image alone, and some in one batch."""
    return combine_agreements(
        [
            measure_agreement(references[index], detections)
            for index, _, detections in run_on_all(run, images)
        ]
    )


def measure_agreement(reference: Detections, candidate: Detections) -> Agreement:
    """Match the fp16 detections of one image (``candidate``) with the fp32 ones (``reference``).

    An unmatched detection is lost, with the two exceptions of
    :func:`model_export.verification.comparison.compare`: the top-K limit decides about it or one
    of its corners, or, for a few, rounding decides which of two adjacent cells is the peak. Raises
    :class:`Fp16Error` for NaN or infinity.
    """
    if not all(np.isfinite(values).all() for values in candidate.values()):
        raise Fp16Error(
            "the fp16 detections contain NaN or infinity: the results of some layer exceed 65504, "
            "the largest fp16 value. Export with --precision fp32."
        )
    kinds = zip(split_kinds(reference), split_kinds(candidate), strict=True)
    return combine_agreements([_compare_kind(*kind) for kind in kinds])


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


def _compare_kind(reference: Detections, candidate: Detections) -> Agreement:
    position, distances = _position_distances(reference, candidate)
    reference_rows, candidate_rows = match_greedily(-distances, -TOLERANCES[position])
    errors = {
        position: distances[reference_rows, candidate_rows],
        **_value_errors(reference, reference_rows, candidate, candidate_rows),
    }
    keypoint_errors = [
        errors.pop(name) for name in ("keypoints", "keypoint_scores") if name in errors
    ]
    same = np.ones(len(reference_rows), dtype=bool)
    for name, values in errors.items():
        same &= _worst_per_row(values) <= TOLERANCES[name]
    worst_errors = {name: float(values[same].max(initial=0.0)) for name, values in errors.items()}
    keypoints = keypoints_matched = 0
    if keypoint_errors:
        keypoint_distances, score_errors = (values[same] for values in keypoint_errors)
        agrees = (keypoint_distances <= TOLERANCES["keypoints"]) & (
            score_errors <= TOLERANCES["keypoint_scores"]
        )
        keypoints, keypoints_matched = agrees.size, int(agrees.sum())
        worst_errors["keypoints"] = float(keypoint_distances[agrees].max(initial=0.0))
        worst_errors["keypoint_scores"] = float(score_errors[agrees].max(initial=0.0))
    unmatched = _unmatched(reference, reference_rows[same], candidate)
    only_in_candidate = _unmatched(candidate, candidate_rows[same], reference)
    return Agreement(
        found=int((reference["scores"] > 0).sum()),
        matched=int(same.sum()),
        lost=max(side["beyond_tolerance"] for side in (unmatched, only_in_candidate)),
        unmatched=unmatched,
        keypoints=keypoints,
        keypoints_matched=keypoints_matched,
        worst_errors=worst_errors,
    )


def _position_distances(reference: Detections, candidate: Detections) -> tuple[str, _Errors]:
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
        distances[close] = np.minimum(distances[close], TOLERANCES["overlap"])
    distances = distances.astype(np.float64)
    distances[reference["class_ids"][:, np.newaxis] != candidate["class_ids"]] = np.inf
    distances[reference["scores"] <= 0] = np.inf  # empty rows
    distances[:, candidate["scores"] <= 0] = np.inf
    return position, distances


def boxes_in_cells(detections: Detections) -> NDArray[np.float64] | None:
    """Return x1, y1, x2, y2 in cells, (K, 4); None for detections without boxes."""
    if "boxes" in detections:
        return detections["boxes"].astype(np.float64)
    if "sizes" not in detections:
        return None
    centers, halves = (detections[name].astype(np.float64) for name in ("centers", "sizes"))
    halves = halves / 2
    return np.hstack((centers - halves, centers + halves))


def _value_errors(
    reference: Detections, reference_rows: _Indices, candidate: Detections, candidate_rows: _Indices
) -> dict[str, _Errors]:
    """Return all differences except the position's, in the units of :data:`TOLERANCES`."""
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


def _unmatched(detections: Detections, matched: _Indices, others: Detections) -> Mapping[str, int]:
    """Count unmatched detections by reason; see :func:`measure_agreement`."""
    scores, tolerance = detections["scores"], TOLERANCES["scores"]
    unmatched = scores > 0
    unmatched[matched] = False
    at_limit = scores <= max(others["scores"].min(), 0.0) + tolerance
    if "corner_scores" in detections:
        lowest = others["corner_scores"].min(axis=0)
        at_limit |= (detections["corner_scores"] <= lowest + tolerance).any(axis=1)
    at_limit &= unmatched
    unmatched &= ~at_limit
    distances = distances_between(detections, others)
    # Below half a cell it is the same peak with another box: an error, not a tie.
    ties = (distances >= 0.5) & (distances <= NEIGHBOUR_CELLS)
    ties &= np.abs(scores[:, np.newaxis] - others["scores"]) <= tolerance
    exempt = unmatched & ties.any(axis=1)
    if exempt.sum() > MAX_NEIGHBOUR_TIES * len(unmatched):
        exempt[:] = False
    return {
        "top_k_limit": int(at_limit.sum()),
        "adjacent_cells": int(exempt.sum()),
        "beyond_tolerance": int((unmatched & ~exempt).sum()),
    }


def _check(agreement: Agreement) -> None:
    if agreement.matched < MIN_COMPARED_FRACTION * max(1, agreement.found):
        raise Fp16Error(
            f"only {agreement.matched} of {agreement.found} detections in fp16 could be matched "
            "with those in fp32. Verify with images of the objects that the network detects "
            "(--verify-images), or export with --precision fp32."
        )
    if agreement.matched_fraction < MIN_MATCHED_FRACTION:
        raise Fp16Error(
            f"only {agreement.matched_fraction:.1%} of the detections or keypoints in fp16 match "
            f"those in fp32, at least {MIN_MATCHED_FRACTION:.0%} must: this network is too "
            "sensitive to rounding. Export with --precision fp32."
        )
