"""3D box decoding: *Objects as Points*, section 4.1."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model_export.graph.peaks import boxes_at_peaks, gather, top_peaks

KITTI_PROJECTION = (
    707.0493, 0.0, 604.0814, 45.75831,
    0.0, 707.0493, 180.5066, -0.3454157,
    0.0, 0.0, 1.0, 0.004981016,
)  # fmt: skip
"""Default camera matrix (3, 4) of the reference implementation."""

_EPSILON = 1e-6  # upstream value, against division by zero


def decode_boxes_3d(maps: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, ...]:
    """Decode 3D boxes: the outputs of :class:`model_package.CenterBoxes3DDecoder`, in its order.

    ``maps`` are float32 (N, C, H, W) by head; the heatmap's values are in [0, 1], all others are
    raw.
    """
    peaks = top_peaks(maps["heatmap"], top_k)
    centers, sizes = boxes_at_peaks(peaks, maps.get("offset"), maps["size"])
    return (
        peaks.scores,
        peaks.class_ids.to(torch.int32),
        centers,
        sizes,
        depth_from_raw(gather(maps["depth"], peaks.cells)).squeeze(2),
        gather(maps["dimensions"], peaks.cells),
        gather(maps["rotation"], peaks.cells),
    )


def depth_from_raw(raw: Tensor) -> Tensor:
    """Convert raw depths to metres: 1 / sigmoid(raw) - 1 (section 4.1)."""
    return 1.0 / (torch.sigmoid(raw) + _EPSILON) - 1.0
