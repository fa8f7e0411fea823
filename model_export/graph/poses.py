"""Keypoints of a pose: *Objects as Points*, section 4.2, as the upstream test code joins them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model_export.graph.peaks import (
    MIDDLE_OF_CELL,
    cell_positions,
    gather,
    keep_peaks,
    place_boxes,
    top_of_rows,
    top_peaks,
)

MIN_KEYPOINT_SCORE = 0.1
"""Peaks of a keypoint heatmap at or below this score are not looked at."""

REACH = 0.3
"""A keypoint moves to a peak at most this far: times the longer side of the box."""

_NOWHERE = -10_000.0  # far from every keypoint, in cells


def pick_poses(maps: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, ...]:
    """Find poses: the outputs of :class:`model_package.CenterPosesDecoder`, in its order.

    ``maps`` are float32 (N, C, H, W) by head; the heatmaps' values are in [0, 1].
    ``keypoint_offsets`` has two channels per keypoint, x before y, from the integer cell of the center.
    Without keypoint heatmaps, keypoints are where the center says.
    """
    peaks = top_peaks(maps["heatmap"], top_k)
    centers, sizes = place_boxes(peaks, maps.get("offset"), maps["size"])
    positions = cell_positions(peaks.cells, maps["size"].shape[3])
    offsets = gather(maps["keypoint_offsets"], peaks.cells)  # (N, K, 2 * J)
    offsets = offsets.reshape(*offsets.shape[:2], -1, 2)
    keypoints = positions.unsqueeze(2) + offsets  # (N, K, J, 2)
    scores = torch.zeros_like(keypoints[..., 0])
    if "keypoint_heatmap" in maps:
        found, found_scores = _find_keypoints(
            maps["keypoint_heatmap"], maps.get("keypoint_heatmap_offset"), top_k
        )
        keypoints, scores = _join(keypoints, found, found_scores, centers, sizes)
    return peaks.scores, peaks.class_ids.to(torch.int32), centers, sizes, keypoints, scores


def _find_keypoints(heatmap: Tensor, offset: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Find the best peaks of each keypoint: places (N, J, count, 2) in cells, and scores."""
    keypoints, height, width = heatmap.shape[1:]
    scores, cells = top_of_rows(keep_peaks(heatmap).flatten(2), count, maps_per_row=1)
    cells = cells.clamp(max=height * width - 1)  # empty places stand past the end
    shift: Tensor | float = MIDDLE_OF_CELL
    if offset is not None:
        shift = gather(offset, cells.flatten(1)).reshape(-1, keypoints, count, 2)
    places = cell_positions(cells, width) + shift
    visible = scores > MIN_KEYPOINT_SCORE
    return torch.where(visible.unsqueeze(3), places, _NOWHERE), scores


def _join(
    keypoints: Tensor, found: Tensor, found_scores: Tensor, centers: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Move each keypoint (N, K, J, 2) to the peak of its kind nearest to it, if that one fits.

    A peak fits when it is inside the box and within reach. Returns the keypoints and the scores of
    the peaks they moved to, (N, K, J), 0 where a keypoint stayed.
    """
    apart = keypoints.transpose(1, 2).unsqueeze(3) - found.unsqueeze(2)  # (N, J, K, count, 2)
    squared, nearest = apart.square().sum(dim=4).min(dim=3)  # (N, J, K)
    distance = squared.sqrt().transpose(1, 2)
    scores = found_scores.gather(2, nearest).transpose(1, 2)
    places = found.gather(2, nearest.unsqueeze(3).expand(-1, -1, -1, 2)).transpose(1, 2)
    low, high = (corner.unsqueeze(2) for corner in (centers - sizes / 2, centers + sizes / 2))
    inside = ((places >= low) & (places <= high)).all(dim=3)
    in_reach = distance <= REACH * sizes.amax(dim=2, keepdim=True)
    fits = inside & in_reach & (scores > MIN_KEYPOINT_SCORE)
    return torch.where(fits.unsqueeze(3), places, keypoints), torch.where(fits, scores, 0.0)
