"""Proof that a file in half precision finds what the float32 file finds.

Half precision moves every number a little, so detections are compared as their users see them:
is there one of the same class, almost the same box and almost the same score?
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from labels.matching import box_iou, match_greedily
from model_export.errors import HalfPrecisionError
from model_export.verification.comparison import (
    MAX_NEIGHBOUR_TIES,
    NEIGHBOUR_CELLS,
    Detections,
    distances_between,
    measure,
    split_kinds,
)
from model_export.verification.fp16_rounding import with_explicit_rounding
from model_export.verification.onnx_vs_torch import Image, Run, candidates, onnx_runner
from model_package import Verification

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
"""How far the two sides of a match may be apart.

``overlap``: 1 - IoU of the boxes. Scores: what shows in two decimals. Centers (of *Keypoint
Triplets*, which have no box): in cells. Keypoints: in longer sides of the box. Depths, dimensions
and rotations: metres and raw values, relative where they are above one.
"""

SAME_SIDES_CELLS = 0.02
"""Boxes whose sides are this close are the same box, whatever their IoU: a shift of 0.08 pixels
lowers the IoU of a box that is 16 pixels wide to 0.99, and that of a sliver to nothing."""

MIN_MATCHED_FRACTION = 0.99
"""Of the detections, and of the keypoints of those that match."""

MIN_COMPARED_FRACTION = 0.5
"""Share of the float32 file's detections that must match: near-ties alone prove nothing."""

_Errors = NDArray[np.float64]
_Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """Counts over one image or several."""

    found: int
    """Detections of the float32 file."""
    matched: int
    lost: int
    """Detections of one side, the one with more of them, that the other should have."""
    keypoints: int
    keypoints_matched: int
    worst_errors: Mapping[str, float]
    """Between matched detections and keypoints, by the names in :data:`TOLERANCES`."""

    @property
    def matched_fraction(self) -> float:
        """Of detections or keypoints, the smaller one."""
        detections = self.matched / max(1, self.matched + self.lost)
        return min(detections, self.keypoints_matched / self.keypoints if self.keypoints else 1.0)


def verify_half(
    half_file: Path, full_file: Path, output_names: Sequence[str], images: Sequence[Image]
) -> Verification:
    """Compare the detections of both files in ONNX Runtime on ``images``.

    The half file runs twice: as it is, and with its rounding made explicit, which is what a GPU does
    at most (see :mod:`model_export.verification.fp16_rounding`). Raises :class:`HalfPrecisionError` when too few
    detections match in either run.
    """
    run = onnx_runner(full_file, output_names)
    references = [run(image[np.newaxis])[0] for image in images]
    del run  # large networks: one session at a time
    agreements = []
    for run_half in _runs_of_half(half_file, output_names):
        agreements.append(_agree_on_all(references, run_half, images))
        _check(agreements[-1])
    worst = min(agreements, key=lambda agreement: agreement.matched_fraction)
    names = worst.worst_errors
    return Verification(
        reference=f"{full_file.name}, fp32, ONNX Runtime {ort.__version__}, CPU",
        inputs=len(images),
        tolerances={name: TOLERANCES[name] for name in names},
        worst_errors={name: max(one.worst_errors[name] for one in agreements) for name in names},
        matched_fraction=worst.matched_fraction,
    )


def _runs_of_half(half_file: Path, output_names: Sequence[str]) -> Iterator[Run]:
    yield onnx_runner(half_file, output_names)
    rounding = with_explicit_rounding(onnx.load(half_file)).SerializeToString()
    yield onnx_runner(rounding, output_names)


def _agree_on_all(references: Sequence[Detections], run: Run, images: Sequence[Image]) -> Agreement:
    """Every image alone, and some in one batch."""
    return together(
        [agree(references[index], detections) for index, _, detections in candidates(run, images)]
    )


def agree(reference: Detections, candidate: Detections) -> Agreement:
    """Match the detections of one image; ``reference`` is what float32 finds.

    A detection that has no partner is lost, except in the two cases that
    :func:`model_export.verification.comparison.compare` excuses: the cut at K decides about it or about one
    of its corners, or, for a few, which of two adjacent cells of the same score is the peak.
    Raises :class:`HalfPrecisionError` where half precision gives NaN or infinity.
    """
    if not all(np.isfinite(values).all() for values in candidate.values()):
        raise HalfPrecisionError(
            "NaN or infinity among the detections: in half precision, which ends at 65504, some "
            "layer's results are too large. Export with --precision fp32."
        )
    kinds = zip(split_kinds(reference), split_kinds(candidate), strict=True)
    return together([_agree_on_kind(*kind) for kind in kinds])


def together(agreements: Sequence[Agreement]) -> Agreement:
    """Sum up."""
    worst_errors: dict[str, float] = {}
    for agreement in agreements:
        for name, error in agreement.worst_errors.items():
            worst_errors[name] = max(error, worst_errors.get(name, 0.0))
    return Agreement(
        found=sum(one.found for one in agreements),
        matched=sum(one.matched for one in agreements),
        lost=sum(one.lost for one in agreements),
        keypoints=sum(one.keypoints for one in agreements),
        keypoints_matched=sum(one.keypoints_matched for one in agreements),
        worst_errors=worst_errors,
    )


def _agree_on_kind(reference: Detections, candidate: Detections) -> Agreement:
    place, apart = _places_apart(reference, candidate)
    local, upstream = match_greedily(-apart, -TOLERANCES[place])
    errors = {place: apart[local, upstream], **_value_errors(reference, local, candidate, upstream)}
    keypoint_errors = [
        errors.pop(name) for name in ("keypoints", "keypoint_scores") if name in errors
    ]
    same = np.ones(len(local), dtype=bool)
    for name, values in errors.items():
        same &= _worst_per_row(values) <= TOLERANCES[name]
    worst_errors = {name: float(values[same].max(initial=0.0)) for name, values in errors.items()}
    keypoints = keypoints_matched = 0
    if keypoint_errors:
        distances, score_errors = (values[same] for values in keypoint_errors)
        stayed = (distances <= TOLERANCES["keypoints"]) & (
            score_errors <= TOLERANCES["keypoint_scores"]
        )
        keypoints, keypoints_matched = stayed.size, int(stayed.sum())
        worst_errors["keypoints"] = float(distances[stayed].max(initial=0.0))
        worst_errors["keypoint_scores"] = float(score_errors[stayed].max(initial=0.0))
    return Agreement(
        found=int((reference["scores"] > 0).sum()),
        matched=int(same.sum()),
        lost=max(
            _lost(reference, local[same], candidate), _lost(candidate, upstream[same], reference)
        ),
        keypoints=keypoints,
        keypoints_matched=keypoints_matched,
        worst_errors=worst_errors,
    )


def _places_apart(reference: Detections, candidate: Detections) -> tuple[str, _Errors]:
    """How far every two places are apart, and under which name; infinite between classes."""
    boxes = _boxes(reference), _boxes(candidate)
    if boxes[0] is None or boxes[1] is None:
        place = "centers"
        apart = np.abs(reference[place][:, np.newaxis] - candidate[place]).max(axis=2)
    else:
        place = "overlap"
        apart = 1.0 - box_iou(boxes[0], boxes[1])
        sides = np.abs(boxes[0][:, np.newaxis] - boxes[1]).max(axis=2)
        close = sides <= SAME_SIDES_CELLS
        apart[close] = np.minimum(apart[close], TOLERANCES["overlap"])
    apart = apart.astype(np.float64)
    apart[reference["class_ids"][:, np.newaxis] != candidate["class_ids"]] = np.inf
    apart[reference["scores"] <= 0] = np.inf  # empty places
    apart[:, candidate["scores"] <= 0] = np.inf
    return place, apart


def _boxes(detections: Detections) -> _Errors | None:
    """x1, y1, x2, y2 in cells, (K, 4); None for detections that are points."""
    if "boxes" in detections:
        return detections["boxes"].astype(np.float64)
    if "sizes" not in detections:
        return None
    centers, halves = (detections[name].astype(np.float64) for name in ("centers", "sizes"))
    halves = halves / 2
    return np.hstack((centers - halves, centers + halves))


def _value_errors(
    reference: Detections, local: _Indices, candidate: Detections, upstream: _Indices
) -> dict[str, _Errors]:
    """Differences of everything but the place, in the terms of :data:`TOLERANCES`."""
    errors = measure(reference, local, candidate, upstream)
    for place in ("boxes", "centers", "sizes"):
        errors.pop(place, None)
    if "keypoints" in errors:
        keypoints = (
            side["keypoints"][rows] for side, rows in ((reference, local), (candidate, upstream))
        )
        longer_sides = reference["sizes"][local].max(axis=1)[:, np.newaxis]
        difference = np.subtract(*keypoints).astype(np.float64)
        errors["keypoints"] = np.abs(difference).max(axis=2) / longer_sides
    return errors


def _worst_per_row(values: _Errors) -> _Errors:
    worst: _Errors = values.max(axis=tuple(range(1, values.ndim)), initial=0.0)
    return worst


def _lost(detections: Detections, matched: _Indices, others: Detections) -> int:
    """Count what has no partner and no excuse; see :func:`agree`."""
    scores, tolerance = detections["scores"], TOLERANCES["scores"]
    unmatched = scores > max(others["scores"].min(), 0.0) + tolerance
    if "corner_scores" in detections:
        lowest = others["corner_scores"].min(axis=0)
        unmatched &= (detections["corner_scores"] > lowest + tolerance).all(axis=1)
    unmatched[matched] = False
    distances = distances_between(detections, others)
    # At less than half a cell it is the same peak with another box: no tie, an error.
    ties = (distances >= 0.5) & (distances <= NEIGHBOUR_CELLS)
    ties &= np.abs(scores[:, np.newaxis] - others["scores"]) <= tolerance
    excused = unmatched & ties.any(axis=1)
    if excused.sum() <= MAX_NEIGHBOUR_TIES * len(unmatched):
        unmatched &= ~excused
    return int(unmatched.sum())


def _check(agreement: Agreement) -> None:
    if agreement.matched < MIN_COMPARED_FRACTION * max(1, agreement.found):
        raise HalfPrecisionError(
            f"only {agreement.matched} of {agreement.found} detections in half precision could be "
            "matched with those in float32. Verify with images that hold what the network "
            "finds (--verify-images), or export with --precision fp32."
        )
    if agreement.matched_fraction < MIN_MATCHED_FRACTION:
        raise HalfPrecisionError(
            f"only {agreement.matched_fraction:.1%} of the detections or keypoints in half precision "
            f"are those in float32, accepted are {MIN_MATCHED_FRACTION:.0%}: this network is too "
            "sensitive to rounding. Export with --precision fp32."
        )
