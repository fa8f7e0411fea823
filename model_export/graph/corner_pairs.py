"""Corners into boxes (*CornerNet*, Law and Deng 2018, sections 3.1 and 4.2), inside the graph.

One row per image: whoever wants the flipped image looked at too, as the authors always do, gives
it as a row of its own and merges the boxes of both.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from model_export.graph.heads import Head
from model_export.graph.peaks import Peaks, cell_positions, divide, gather, top_peaks

PAIRS = 1000
"""Pairs per image that leave the graph, as many as the authors keep."""

MAX_EMBEDDING_DISTANCE = 0.5
"""Corners whose embeddings differ by more belong to different objects (section 4.2)."""

IMPOSSIBLE = -1.0
"""Score of a pair that no box can have."""

_CENTER_HEADS = {
    "center_heatmap": Head(1, per="class", heatmap=True),
    "center_offset": Head(2),
}
PAIR_HEADS: Mapping[str, Head] = {
    "top_left_heatmap": Head(1, per="class", heatmap=True),
    "bottom_right_heatmap": Head(1, per="class", heatmap=True),
    "top_left_embedding": Head(1),
    "bottom_right_embedding": Head(1),
    "top_left_offset": Head(2),
    "bottom_right_offset": Head(2),
}
TRIPLET_HEADS: Mapping[str, Head] = {**PAIR_HEADS, **_CENTER_HEADS}


class Corners(NamedTuple):
    """The best K corners of one kind in each image, best first."""

    scores: Tensor
    """float32 (N, K) in [0, 1]."""
    class_ids: Tensor
    """int64 (N, K)."""
    points: Tensor
    """float32 (N, K, 2), x before y, in cells."""
    embeddings: Tensor
    """float32 (N, K)."""


def pick_corner_pairs(maps: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, ...]:
    """Find pairs: the outputs of :class:`model_package.CornerPairsDecoder`, in its order.

    ``maps`` are float32 (N, C, H, W) by the names in :data:`PAIR_HEADS`, heatmaps in [0, 1];
    ``top_k`` is how many corners of each kind are paired.
    """
    return pair_corners(
        find_corners(maps, "top_left", top_k), find_corners(maps, "bottom_right", top_k), PAIRS
    )


def pick_corner_triplets(maps: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, ...]:
    """Find pairs and centers: the outputs of :class:`model_package.CornerTripletsDecoder`.

    Which center belongs to which pair is decided later, in pixels of the image, where small
    and large boxes are told apart (*Keypoint Triplets*, Duan et al. 2019, section 3.2).
    """
    peaks, points = _find_peaks(maps, "center", top_k)
    centers = (points, peaks.scores, peaks.class_ids.to(torch.int32))
    return *pick_corner_pairs(maps, top_k), *centers


def find_corners(maps: Mapping[str, Tensor], kind: str, top_k: int) -> Corners:
    """Take the ``top_k`` highest peaks over all classes, ``top_left`` or ``bottom_right``."""
    peaks, points = _find_peaks(maps, kind, top_k)
    embeddings = gather(maps[f"{kind}_embedding"], peaks.cells).squeeze(2)
    return Corners(peaks.scores, peaks.class_ids, points, embeddings)


def _find_peaks(maps: Mapping[str, Tensor], kind: str, top_k: int) -> tuple[Peaks, Tensor]:
    """Peaks of one heatmap and their points (N, K, 2) in cells, offsets included."""
    peaks = top_peaks(maps[f"{kind}_heatmap"], top_k)
    offset = maps[f"{kind}_offset"]
    return peaks, cell_positions(peaks.cells, offset.shape[3]) + gather(offset, peaks.cells)


def pair_corners(
    top_left: Corners,
    bottom_right: Corners,
    pairs: int,
    max_embedding_distance: float = MAX_EMBEDDING_DISTANCE,
) -> tuple[Tensor, ...]:
    """Take the best ``pairs`` of all K x K pairs of corners; needs ``pairs`` <= K * K.

    Returns scores float32 (N, P), the mean of both corners' or :data:`IMPOSSIBLE`, class ids
    int32 (N, P), boxes float32 (N, P, 4) in cells, corner scores float32 (N, P, 2).
    """
    scores = (top_left.scores.unsqueeze(2) + bottom_right.scores.unsqueeze(1)) / 2  # (N, K, K)
    impossible = _impossible(top_left, bottom_right, max_embedding_distance)
    scores = torch.where(impossible, IMPOSSIBLE, scores)
    best_scores, indices = torch.topk(scores.flatten(1), pairs)
    first, second = divide(indices, bottom_right.scores.shape[1])
    corner_scores = top_left.scores.gather(1, first), bottom_right.scores.gather(1, second)
    return (
        best_scores,
        top_left.class_ids.gather(1, first).to(torch.int32),
        torch.cat((_points(top_left, first), _points(bottom_right, second)), dim=2),
        torch.stack(corner_scores, dim=2),
    )


def _impossible(top_left: Corners, bottom_right: Corners, max_embedding_distance: float) -> Tensor:
    """Whether each pair (N, K, K) is of two classes, of two objects, or inside out."""
    distances = top_left.embeddings.unsqueeze(2) - bottom_right.embeddings.unsqueeze(1)
    inside_out = bottom_right.points.unsqueeze(1) < top_left.points.unsqueeze(2)  # (N, K, K, 2)
    return (
        (top_left.class_ids.unsqueeze(2) != bottom_right.class_ids.unsqueeze(1))
        | (distances.abs() > max_embedding_distance)
        | inside_out[..., 0]
        | inside_out[..., 1]
    )


def _points(corners: Corners, rows: Tensor) -> Tensor:
    """Points (N, P, 2) in ``rows`` (N, P)."""
    return corners.points.gather(1, rows.unsqueeze(2).expand(-1, -1, 2))
