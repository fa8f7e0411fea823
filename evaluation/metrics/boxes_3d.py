"""How much 3D boxes overlap, and how far they are off."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.detections import Answer
from evaluation.ground_truth import Boxes3DLabels, ImageLabels
from evaluation.metrics.matching import match

Box = NDArray[np.float64]
"""float64 (7,): height, width, length, x, y, z of the bottom's middle (metres), rotation_y."""


def as_boxes(labels: Boxes3DLabels) -> NDArray[np.float64]:
    """The labels' boxes (n, 7)."""
    return np.hstack([labels.dimensions_hwl, labels.locations, labels.rotations_y[:, None]])


def overlaps_3d(
    ground_truth: NDArray[np.float64], found: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU (labels, detections) seen from above, and of the whole boxes; both inputs (n, 7)."""
    above = np.zeros((len(ground_truth), len(found)))
    whole = np.zeros_like(above)
    reach = [np.hypot(boxes[:, 1], boxes[:, 2]) / 2 for boxes in (ground_truth, found)]
    apart = np.hypot(*(ground_truth[:, None, (3, 5)] - found[None, :, (3, 5)]).transpose(2, 0, 1))
    near = apart < reach[0][:, None] + reach[1]
    for i, j in zip(*np.nonzero(near), strict=True):
        one, other = ground_truth[i], found[j]
        shared = _polygon_area(_clip(_footprint(one), _footprint(other)))
        areas = one[1] * one[2], other[1] * other[2]
        above[i, j] = _ratio(shared, *areas)
        # y points down and is the bottom's: a box reaches from y - height to y.
        height = min(one[4], other[4]) - max(one[4] - one[0], other[4] - other[0])
        whole[i, j] = _ratio(shared * max(height, 0.0), areas[0] * one[0], areas[1] * other[0])
    return above, whole


def _ratio(shared: float, one: float, other: float) -> float:
    joined = one + other - shared
    return shared / joined if joined > 0 else 0.0


def _footprint(box: Box) -> NDArray[np.float64]:
    """Corners (4, 2) as x, z, in one sense of turning for every box."""
    _, width, length, x, _, z, turned = box
    along = np.array([1, 1, -1, -1]) * length / 2
    across = np.array([1, -1, -1, 1]) * width / 2
    cosine, sine = np.cos(turned), np.sin(turned)
    return np.stack([x + cosine * along + sine * across, z - sine * along + cosine * across], 1)


def _clip(polygon: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a convex polygon (n, 2) in a convex window that turns the same way."""
    for start, end in zip(window, np.roll(window, -1, axis=0), strict=True):
        if not len(polygon):
            break
        edge = end - start
        # Both turn clockwise where x points right and z up: inside is on the right.
        side = edge[1] * (polygon[:, 0] - start[0]) - edge[0] * (polygon[:, 1] - start[1])
        kept = []
        for k in range(len(polygon)):
            after = (k + 1) % len(polygon)
            if side[k] >= 0:
                kept.append(polygon[k])
            if side[k] * side[after] < 0:
                part = side[k] / (side[k] - side[after])
                kept.append(polygon[k] + part * (polygon[after] - polygon[k]))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def _polygon_area(polygon: NDArray[np.float64]) -> float:
    x, z = polygon.T
    return float(abs(x @ np.roll(z, -1) - z @ np.roll(x, -1)) / 2)


@dataclass(frozen=True)
class Box3DErrors:
    """Median errors over the objects that were found (same class, 2D IoU >= 0.5).

    Depth and dimensions relative to the label's, the rotation in degrees (0 to 180), and the IoU
    of the 3D boxes.
    """

    depth: float
    height: float
    width: float
    length: float
    rotation_deg: float
    iou_3d: float
    objects: int
    found: int


def box_3d_errors(
    images: Sequence[tuple[ImageLabels, Answer, NDArray[np.float64]]],
) -> Box3DErrors:
    """Errors at the model's threshold; per image labels, detections and label boxes (n, 7).

    The boxes belong to the labels that are no crowd, in their order.
    """
    rows: list[tuple[float, ...]] = []
    objects = 0
    for labels, answer, boxes in images:
        box_row = np.cumsum(~labels.is_crowd) - 1
        objects += len(boxes)
        for row, column in match(labels, answer, same_class=True).pairs:
            ground_truth, found = boxes[box_row[row]], answer.space[column, :7]
            turned = abs((found[6] - ground_truth[6] + np.pi) % (2 * np.pi) - np.pi)
            _, whole = overlaps_3d(ground_truth[None], found[None])
            off = (
                np.abs(found[[5, 0, 1, 2]] - ground_truth[[5, 0, 1, 2]])
                / ground_truth[[5, 0, 1, 2]]
            )
            rows.append((*off.tolist(), float(np.degrees(turned)), float(whole[0, 0])))
    medians = np.median(rows, axis=0).tolist() if rows else [float("nan")] * 6
    depth, height, width, length, turned, iou = medians
    return Box3DErrors(depth, height, width, length, turned, iou, objects, len(rows))
