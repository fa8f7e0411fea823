"""Matching of detections to labelled objects at the model's score threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import ImageDetections
from evaluation.ground_truth import ImageLabels
from labels.matching import box_coverage, box_iou, match_greedily

MIN_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """Matches of one image.

    Attributes:
        pairs: int64 (n, 2), rows of the labels and of the detections.
        false_negatives: rows of the labels without a detection.
        false_positives: rows of the detections without an object.
    """

    pairs: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    false_positives: NDArray[np.int64]

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 for an image without labels and detections."""
        errors = len(self.false_negatives) + len(self.false_positives)
        correct = 2 * len(self.pairs)
        return correct / (correct + errors) if correct + errors else 1.0


def match_detections(
    labels: ImageLabels, detections: ImageDetections, *, same_class: bool
) -> Matches:
    """Match each detection, best score first, to the unmatched object with the highest IoU.

    The IoU must be at least 0.5. A detection at least half of which lies in a crowd is neither a
    true nor a false positive.
    """
    iou = box_iou(labels.boxes_xyxy, detections.boxes_xyxy)
    coverage = box_coverage(labels.boxes_xyxy, detections.boxes_xyxy)
    if same_class:
        differs = labels.class_ids[:, None] != detections.class_ids
        iou[differs] = 0
        coverage[differs] = 0
    iou[labels.is_crowd] = 0
    found, objects = match_greedily(iou.T, MIN_IOU)
    is_missed = ~labels.is_crowd
    is_missed[objects] = False
    is_in_crowd = np.asarray((coverage[labels.is_crowd] >= MIN_IOU).any(axis=0))
    unmatched = np.setdiff1d(np.arange(len(detections)), found)
    return Matches(
        np.stack([objects, found], axis=1),
        np.flatnonzero(is_missed),
        unmatched[~is_in_crowd[unmatched]],
    )


def confusion_matrix(
    images: Sequence[tuple[ImageLabels, ImageDetections]], classes: int
) -> NDArray[np.int64]:
    """Count labelled classes (rows) detected as classes (columns), int64 (classes + 1,) * 2.

    The last row counts false positives, the last column false negatives.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for labels, detections in images:
        matches = match_detections(labels, detections, same_class=False)
        rows, columns = matches.pairs.T
        np.add.at(counts, (labels.class_ids[rows], detections.class_ids[columns]), 1)
        np.add.at(counts[:, classes], labels.class_ids[matches.false_negatives], 1)
        np.add.at(counts[classes], detections.class_ids[matches.false_positives], 1)
    return counts
