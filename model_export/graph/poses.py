"""Pose decoding: *Objects as Points*, section 4.2, with the upstream rule for heatmap peaks."""

import torch
from torch import Tensor

from model_export.graph.peaks import (
    CELL_CENTER,
    CenterBoxes,
    Maps,
    cell_positions,
    gather,
    keep_peaks,
    top_of_rows,
)

MIN_KEYPOINT_SCORE = 0.1
"""Peaks of a keypoint heatmap at or below this score are ignored."""

MAX_PEAK_DISTANCE = 0.3
"""Largest distance from a keypoint to its peak, as a fraction of the longer box side."""

_FAR_AWAY = -10_000.0  # in cells; farther from every keypoint than any peak


def decode_keypoints(maps: Maps, boxes: CenterBoxes) -> tuple[Tensor, ...]:
    """Decode keypoints: what :class:`model_package.KeypointsDecoder` adds to boxes, in its order.

    ``keypoint_offsets`` has two channels per keypoint, x before y, relative to the integer cell of
    the center. Without a keypoint heatmap, keypoints are the regressed ones.
    """
    cells = boxes.peaks.cells
    positions = cell_positions(cells, maps["size"].shape[3])
    offsets = gather(maps["keypoint_offsets"], cells)  # (N, K, 2 * J)
    offsets = offsets.reshape(*offsets.shape[:2], -1, 2)
    keypoints = positions.unsqueeze(2) + offsets  # (N, K, J, 2)
    scores = torch.zeros_like(keypoints[..., 0])
    if "keypoint_heatmap" in maps:
        found, found_scores = _find_keypoints(
            maps["keypoint_heatmap"], maps.get("keypoint_heatmap_offset"), cells.shape[1]
        )
        keypoints, scores = _snap_to_peaks(keypoints, found, found_scores, boxes)
    return keypoints, scores


def _find_keypoints(heatmap: Tensor, offset: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Return the top peaks of each keypoint: points (N, J, count, 2) in cells, and scores."""
    keypoints, height, width = heatmap.shape[1:]
    scores, cells = top_of_rows(keep_peaks(heatmap).flatten(2), count, maps_per_row=1)
    cells = cells.clamp(max=height * width - 1)  # padding indices are past the end
    shift: Tensor | float = CELL_CENTER
    if offset is not None:
        shift = gather(offset, cells.flatten(1)).reshape(-1, keypoints, count, 2)
    points = cell_positions(cells, width) + shift
    visible = scores > MIN_KEYPOINT_SCORE
    return torch.where(visible.unsqueeze(3), points, _FAR_AWAY), scores


def _snap_to_peaks(
    keypoints: Tensor, found: Tensor, found_scores: Tensor, boxes: CenterBoxes
) -> tuple[Tensor, Tensor]:
    """Move each keypoint (N, K, J, 2) to the nearest peak of its heatmap, if that peak fits.

    A peak fits if it lies inside the box and within :data:`MAX_PEAK_DISTANCE`. Returns the
    keypoints and the scores of their peaks, (N, K, J), 0 for keypoints that were not moved.
    """
    difference = keypoints.transpose(1, 2).unsqueeze(3) - found.unsqueeze(2)  # (N, J, K, count, 2)
    squared, nearest = difference.square().sum(dim=4).min(dim=3)  # (N, J, K)
    distance = squared.sqrt().transpose(1, 2)
    scores = found_scores.gather(2, nearest).transpose(1, 2)
    points = found.gather(2, nearest.unsqueeze(3).expand(-1, -1, -1, 2)).transpose(1, 2)
    centers, sizes = boxes.centers, boxes.sizes
    low, high = (corner.unsqueeze(2) for corner in (centers - sizes / 2, centers + sizes / 2))
    inside = ((points >= low) & (points <= high)).all(dim=3)
    is_near = distance <= MAX_PEAK_DISTANCE * sizes.amax(dim=2, keepdim=True)
    fits = inside & is_near & (scores > MIN_KEYPOINT_SCORE)
    return torch.where(fits.unsqueeze(3), points, keypoints), torch.where(fits, scores, 0.0)
