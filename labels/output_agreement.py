"""Comparison of the detections in the outputs of two engines, which round differently.

Rounding changes every number slightly and the order of rows with nearly equal scores. A detection
therefore agrees if the other outputs have one of the same class with nearly the same values.

The service compares an engine in this way before it uses it, and the exporter an int8 file before
it adds it to a package, within the same limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.matching import box_iou

Outputs = Mapping[str, NDArray[Any]]
"""Outputs of one image, without the batch axis."""


@dataclass(frozen=True)
class AgreementLimits:
    """Largest differences of detections that agree, and the smallest share that must agree."""

    score: float
    overlap: float
    """1 - IoU of the boxes."""
    value: float
    """Of other values: keypoints as a fraction of the longer side of the box, depths, dimensions
    and rotations relative to values above one."""
    min_share: float
    min_count: int
    """Fewest detections, of both outputs together, that must be compared."""


AGREEMENT_LIMITS: Mapping[str, AgreementLimits] = {
    "fp32": AgreementLimits(score=0.001, overlap=0.01, value=0.01, min_share=0.95, min_count=0),
    "bf16": AgreementLimits(score=0.01, overlap=0.03, value=0.05, min_share=0.9, min_count=10),
    "int8": AgreementLimits(score=0.05, overlap=0.1, value=0.05, min_share=0.9, min_count=10),
}
"""Limits by precision. fp16 has none: its detections are compared when the package is made.

int8 has 8 significant bits like bf16, but one scale for all values of a layer, so small values have
fewer. A score may move by half of the steps in which thresholds are usually set. AP uses ten IoU
thresholds at intervals of 0.05: a box that overlaps its counterpart by 0.9 changes its result at
few of them. Keypoints, depths, dimensions and rotations have no more room than in bf16, nor has the
share of the detections that must agree.
"""

SCORE_TOLERANCES: Mapping[str, float] = {"fp32": 0.02, "fp16": 0.02, "bf16": 0.02, "int8": 0.1}
"""Largest accepted difference of a sorted score, by precision: twice what fp16 and int8 may change
a score by. Defects change scores by far more."""


MIN_KEYPOINTS = 0.8
"""Share of the keypoints of a detection that must agree. A keypoint is the nearest peak of its
heatmap, and rounding decides between two peaks at nearly the same distance."""


def count_agreeing(
    reference: Outputs, outputs: Outputs, limits: AgreementLimits
) -> tuple[int, int]:
    """Return how many detections of either outputs agree with one of the other, and their number.

    Detections whose score is less than ``limits.score`` above the lowest score of the others are
    not counted, because the limit of the number of rows may have cut off their counterpart.
    """
    agrees = _agrees(reference, outputs, limits)
    agreeing = np.concatenate([agrees.any(axis=1), agrees.any(axis=0)])
    counted = np.concatenate(
        [
            _is_counted(reference["scores"], outputs["scores"], limits.score),
            _is_counted(outputs["scores"], reference["scores"], limits.score),
        ]
    )
    return int(agreeing[counted].sum()), int(counted.sum())


def _is_counted(scores: NDArray[Any], others: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    counted: NDArray[np.bool_] = scores > max(float(others.min()), 0.0) + tolerance
    return counted


def _agrees(reference: Outputs, outputs: Outputs, limits: AgreementLimits) -> NDArray[np.bool_]:
    """Return which rows agree, (rows of the reference, rows of the outputs)."""
    boxes = _boxes(reference), _boxes(outputs)
    agrees: NDArray[np.bool_] = box_iou(*boxes) >= 1 - limits.overlap
    agrees &= reference["class_ids"][:, np.newaxis] == outputs["class_ids"]
    agrees &= _differences(reference["scores"], outputs["scores"]) <= limits.score
    sides = (boxes[0][:, 2:] - boxes[0][:, :2]).max(axis=1)
    for name in ("depths", "dimensions", "rotations"):
        if name in reference:
            values = np.abs(reference[name]).reshape(len(sides), -1).max(axis=1)
            accepted = limits.value * np.maximum(1, values)[:, np.newaxis]
            agrees &= _differences(reference[name], outputs[name]) <= accepted
    if "keypoints" in reference:
        distances = np.abs(reference["keypoints"][:, np.newaxis] - outputs["keypoints"]).max(axis=3)
        is_close = distances <= limits.value * sides[:, np.newaxis, np.newaxis]
        agrees &= is_close.mean(axis=2) >= MIN_KEYPOINTS
    return agrees


def _boxes(outputs: Outputs) -> NDArray[np.float64]:
    """Return x1, y1, x2, y2 in cells, (rows, 4)."""
    if "boxes" in outputs:
        return outputs["boxes"].astype(np.float64)
    centers, halves = (outputs[name].astype(np.float64) for name in ("centers", "sizes"))
    return np.hstack((centers - halves / 2, centers + halves / 2))


def _differences(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the largest difference between the values of every two rows, (rows, rows)."""
    a, b = (side.astype(np.float64).reshape(len(side), -1) for side in (a, b))
    differences: NDArray[np.float64] = np.abs(a[:, np.newaxis] - b).max(axis=2)
    return differences
