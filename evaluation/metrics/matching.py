"""Which detection stands for which labelled object, at the model's own score threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import Answer
from evaluation.ground_truth import ImageLabels

SAME_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """What became of the objects and the detections of one image.

    ``pairs``: int64 (n, 2), rows of the labels and of the detections; ``missed``: rows of labels
    without a detection; ``invented``: rows of detections without an object.
    """

    pairs: NDArray[np.int64]
    missed: NDArray[np.int64]
    invented: NDArray[np.int64]

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where there is nothing and nothing was found."""
        mistakes = len(self.missed) + len(self.invented)
        right = 2 * len(self.pairs)
        return right / (right + mistakes) if right + mistakes else 1.0


def match(labels: ImageLabels, answer: Answer, *, same_class: bool) -> Matches:
    """Give each detection, best score first, the free object it overlaps most, with IoU >= 0.5.

    Detections that lie in a crowd by half are neither right nor invented.
    """
    iou, inside = overlaps_of_boxes(labels.boxes_xyxy, answer.boxes_xyxy)
    if same_class:
        differs = labels.class_ids[:, None] != answer.class_ids
        iou[differs] = 0
        inside[differs] = 0
    free = ~labels.is_crowd
    pairs, invented = [], []
    for row in range(len(answer)):
        candidates = np.where(free, iou[:, row], 0)
        best = int(candidates.argmax()) if len(candidates) else 0
        if len(candidates) and candidates[best] >= SAME_IOU:
            free[best] = False
            pairs.append((best, row))
        elif not (inside[labels.is_crowd, row] >= SAME_IOU).any():
            invented.append(row)
    return Matches(
        np.array(pairs, np.int64).reshape(-1, 2), np.flatnonzero(free), np.array(invented, np.int64)
    )


def confusion_matrix(
    images: Sequence[tuple[ImageLabels, Answer]], classes: int
) -> NDArray[np.int64]:
    """Objects of a class (row) found as a class (column); the last of each is nothing at all."""
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for labels, answer in images:
        matches = match(labels, answer, same_class=False)
        rows, columns = matches.pairs.T
        np.add.at(counts, (labels.class_ids[rows], answer.class_ids[columns]), 1)
        np.add.at(counts[:, classes], labels.class_ids[matches.missed], 1)
        np.add.at(counts[classes], answer.class_ids[matches.invented], 1)
    return counts


def overlaps_of_boxes(
    ground_truth: NDArray[np.float64], found: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU (labels, detections), and the part of each detection that lies in the label's box.

    Both inputs (n, 4), x1, y1, x2, y2.
    """
    first = np.maximum(ground_truth[:, None, :2], found[None, :, :2])
    last = np.minimum(ground_truth[:, None, 2:], found[None, :, 2:])
    shared = np.clip(last - first, 0, None).prod(axis=2)
    ground_truth_area = np.clip(ground_truth[:, 2:] - ground_truth[:, :2], 0, None).prod(axis=1)[
        :, None
    ]
    found_area = np.clip(found[:, 2:] - found[:, :2], 0, None).prod(axis=1)[None]
    tiny = np.finfo(np.float64).tiny
    iou = shared / np.maximum(ground_truth_area + found_area - shared, tiny)
    return iou, shared / np.maximum(found_area, tiny)
