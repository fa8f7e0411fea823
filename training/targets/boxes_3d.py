"""Training targets of 3D boxes (*Objects as Points*, section 4.1)."""

from dataclasses import asdict, dataclass

import numpy as np

from training.data.sample import ALL_CLASSES, Boxes3D, FloatArray, IntArray
from training.targets.centers import CenterTargets, center_radius, draw_gaussian

BIN_CENTERS_RAD = (-np.pi / 2, np.pi / 2)
"""Centers of the two angle bins."""

_REACH_RAD = 2 * np.pi / 3
"""Half width of a bin; the two overlap by 60 degrees on either side."""

_IGNORED_PEAK = 0.9999
"""Peak at ignored objects: almost no penalty, but not an object, which needs exactly 1."""


@dataclass(frozen=True)
class Box3DTargets(CenterTargets):
    """Targets of one image with K object slots.

    In addition to the fields of :class:`~training.targets.centers.CenterTargets`:

    Attributes:
        measured: float32 (K,), 1 for objects with depth and dimensions in the loss.
        depth: float32 (K, 1), metres.
        dimensions: float32 (K, 3), height, width, length in metres.
        rotation_bins: int64 (K, 2), 1 where the angle lies in the bin.
        rotation_residuals: float32 (K, 2), angle minus the center of the bin, radians.
    """

    measured: FloatArray
    depth: FloatArray
    dimensions: FloatArray
    rotation_bins: IntArray
    rotation_residuals: FloatArray


def boxes_3d_targets(centers: CenterTargets, boxes_3d: Boxes3D) -> Box3DTargets:
    """Add 3D boxes to the targets of their 2D boxes, in the same order.

    As in the reference implementation, depth and dimensions are masked out if
    ``boxes_3d.is_measurable`` is false: in scaled views an object looks nearer or farther.
    """
    slots = len(centers.cells)
    targets = Box3DTargets(
        **asdict(centers),
        measured=centers.present * np.float32(boxes_3d.is_measurable),
        depth=np.zeros((slots, 1), np.float32),
        dimensions=np.zeros((slots, 3), np.float32),
        rotation_bins=np.zeros((slots, 2), np.int64),
        rotation_residuals=np.zeros((slots, 2), np.float32),
    )
    count = len(boxes_3d.depths_m)
    targets.depth[:count, 0] = boxes_3d.depths_m
    targets.dimensions[:count] = boxes_3d.dimensions_m
    for index, center in enumerate(BIN_CENTERS_RAD):
        residuals = boxes_3d.alphas_rad.astype(np.float64) - center
        inside = np.abs(np.remainder(residuals + np.pi, 2 * np.pi) - np.pi) < _REACH_RAD
        targets.rotation_bins[:count, index] = inside
        targets.rotation_residuals[:count, index] = np.where(inside, residuals, 0.0)
    return targets


def ignore_regions(
    heatmap: FloatArray, boxes_xywh: FloatArray, class_ids: IntArray, *, stride: int
) -> None:
    """Remove the penalty of a heatmap, float32 (C, H, W), at ignored boxes, (M, 4) in pixels.

    Draws the Gaussian of an object with a peak just below 1, for one class or all of them.
    """
    classes, height, width = heatmap.shape
    for box, class_id in zip(boxes_xywh / stride, class_ids.tolist(), strict=True):
        center = np.clip((box[:2] + box[2:] / 2).astype(np.int64), 0, (width - 1, height - 1))
        x, y = int(center[0]), int(center[1])
        gaussian = np.zeros((height, width), np.float32)
        draw_gaussian(gaussian, x, y, center_radius(box[2:]))
        np.minimum(gaussian, _IGNORED_PEAK, out=gaussian)
        for channel in range(classes) if class_id == ALL_CLASSES else (class_id,):
            # An object in the same cell stays an object.
            np.maximum(heatmap[channel], gaussian, out=heatmap[channel])
