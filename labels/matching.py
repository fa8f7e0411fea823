"""Overlap of boxes, and greedy one-to-one matching of detections."""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""x1, y1, x2, y2: float64 (n, 4)."""
Indices = NDArray[np.int64]

_TINY = np.finfo(np.float64).tiny


def box_iou(boxes1: Boxes, boxes2: Boxes) -> NDArray[np.float64]:
    """Return the intersection over union of every two boxes, float64 (n, m).

    Boxes without an area have an IoU of 0 with every box.
    """
    shared = _intersection(boxes1, boxes2)
    union = _area(boxes1)[:, np.newaxis] + _area(boxes2) - shared
    iou: NDArray[np.float64] = shared / np.maximum(union, _TINY)
    return iou


def box_coverage(regions: Boxes, boxes: Boxes) -> NDArray[np.float64]:
    """Return the part of each box that lies in each region, float64 (regions, boxes).

    COCO compares detections with crowd regions, and KITTI with DontCare regions, in this way.
    """
    coverage: NDArray[np.float64] = _intersection(regions, boxes) / np.maximum(_area(boxes), _TINY)
    return coverage


def match_greedily(
    similarity: NDArray[np.floating], min_similarity: float
) -> tuple[Indices, Indices]:
    """Match each row, in order, to the most similar column that is still free.

    ``similarity``: (rows, columns), for example IoU, or negative distances. Rows must be sorted by
    priority, usually by score. A row without a free column of at least ``min_similarity`` stays
    unmatched; of equally similar columns the first is taken.

    Returns the indices of the matched rows and of their columns, int64 (matches,) each.
    """
    free = np.array(similarity)
    pairs = []
    if free.shape[1]:
        for row, values in enumerate(free):
            column = int(values.argmax())
            if values[column] >= min_similarity:
                pairs.append((row, column))
                free[row + 1 :, column] = -np.inf
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return rows, columns


def match_boxes(
    boxes1: Boxes, class_ids1: Indices, boxes2: Boxes, class_ids2: Indices, min_iou: float
) -> tuple[Indices, Indices]:
    """Match boxes of the same class by IoU; see :func:`match_greedily`."""
    iou = box_iou(boxes1, boxes2)
    iou[class_ids1[:, np.newaxis] != class_ids2] = 0
    return match_greedily(iou, min_iou)


def _intersection(boxes1: Boxes, boxes2: Boxes) -> NDArray[np.float64]:
    low = np.maximum(boxes1[:, np.newaxis, :2], boxes2[:, :2])
    high = np.minimum(boxes1[:, np.newaxis, 2:], boxes2[:, 2:])
    shared: NDArray[np.float64] = (high - low).clip(0).prod(axis=2)
    return shared


def _area(boxes: Boxes) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    return area
