"""3D box decoding: *Objects as Points*, section 4.1."""

import torch
from torch import Tensor

from model_export.graph.peaks import CenterBoxes, Maps, gather

KITTI_PROJECTION = (
    707.0493, 0.0, 604.0814, 45.75831,
    0.0, 707.0493, 180.5066, -0.3454157,
    0.0, 0.0, 1.0, 0.004981016,
)  # fmt: skip
"""Default camera matrix (3, 4) of the reference implementation."""

_EPSILON = 1e-6  # upstream value, against division by zero


def decode_boxes_3d(maps: Maps, boxes: CenterBoxes) -> tuple[Tensor, ...]:
    """Decode 3D boxes: what :class:`model_package.Boxes3DDecoder` adds to boxes, in its order."""
    cells = boxes.peaks.cells
    return (
        depth_from_raw(gather(maps["depth"], cells)).squeeze(2),
        gather(maps["dimensions"], cells),
        gather(maps["rotation"], cells),
    )


def depth_from_raw(raw: Tensor) -> Tensor:
    """Convert raw depths to metres: 1 / sigmoid(raw) - 1 (section 4.1)."""
    return 1.0 / (torch.sigmoid(raw) + _EPSILON) - 1.0
