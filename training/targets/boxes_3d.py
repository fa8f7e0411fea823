"""Training targets of 3D boxes (*Objects as Points*, section 4.1)."""

from dataclasses import asdict, dataclass

import numpy as np

from training.data.sample import ALL_CLASSES, FloatArray, IntArray, Space
from training.targets.centers import CenterTargets, center_radius, draw_gaussian

BIN_MIDDLES_RAD = (-np.pi / 2, np.pi / 2)
"""Middles of the two bins of angles."""

_REACH_RAD = 2 * np.pi / 3
"""How far a bin extends from its middle: the two overlap by a sixth of a turn on either side."""

_IGNORED_PEAK = 0.9999
"""Peak at ignored objects: next to no penalty there, and no keypoint."""


@dataclass(frozen=True)
class Box3DTargets(CenterTargets):
    """What the heads should say about one image; K objects at most.

    Besides the fields of :class:`~training.targets.centers.CenterTargets`:

    Attributes:
        measured: float32 (K,), 1 for objects whose depth and dimensions are to be learned.
        depth: float32 (K, 1), metres.
        dimensions: float32 (K, 3), height, width, length in metres.
        rotation_bins: int64 (K, 2), 1 where the angle lies in the bin.
        rotation_residuals: float32 (K, 2), angle minus the middle of the bin, radians.
    """

    measured: FloatArray
    depth: FloatArray
    dimensions: FloatArray
    rotation_bins: IntArray
    rotation_residuals: FloatArray


def boxes_3d_targets(centers: CenterTargets, space: Space) -> Box3DTargets:
    """Add where objects stand in space to the targets of their boxes, in the same order.

    In enlarged or shrunk views (``space.is_measurable`` is false) depth and dimensions are left
    out, as with the authors: an object half as far away would look the same.
    """
    slots = len(centers.cells)
    targets = Box3DTargets(
        **asdict(centers),
        measured=centers.present * np.float32(space.is_measurable),
        depth=np.zeros((slots, 1), np.float32),
        dimensions=np.zeros((slots, 3), np.float32),
        rotation_bins=np.zeros((slots, 2), np.int64),
        rotation_residuals=np.zeros((slots, 2), np.float32),
    )
    count = len(space.depths_m)
    targets.depth[:count, 0] = space.depths_m
    targets.dimensions[:count] = space.dimensions_m
    for index, middle in enumerate(BIN_MIDDLES_RAD):
        residuals = space.alphas_rad.astype(np.float64) - middle
        inside = np.abs(np.remainder(residuals + np.pi, 2 * np.pi) - np.pi) < _REACH_RAD
        targets.rotation_bins[:count, index] = inside
        targets.rotation_residuals[:count, index] = np.where(inside, residuals, 0.0)
    return targets


def ignore_regions(
    heatmap: FloatArray, boxes_xywh: FloatArray, class_ids: IntArray, *, stride: int
) -> None:
    """Take the penalty off a map, float32 (C, H, W), around ignored boxes, (M, 4) in pixels.

    A Gaussian as for an object, with a peak just below 1, in the map of the class or in all maps.
    """
    classes, height, width = heatmap.shape
    for box, class_id in zip(boxes_xywh / stride, class_ids.tolist(), strict=True):
        center = np.clip((box[:2] + box[2:] / 2).astype(np.int64), 0, (width - 1, height - 1))
        x, y = int(center[0]), int(center[1])
        around = np.zeros((height, width), np.float32)
        draw_gaussian(around, x, y, center_radius(box[2:]))
        np.minimum(around, _IGNORED_PEAK, out=around)
        for chosen in range(classes) if class_id == ALL_CLASSES else (class_id,):
            # An object in the same cell stays an object.
            np.maximum(heatmap[chosen], around, out=heatmap[chosen])
