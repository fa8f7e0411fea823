"""Pairing of corners to boxes (*CornerNet*, Law and Deng 2018, sections 3.1 and 4.2).

Runs inside the graph, one batch row per image. Upstream always evaluates the flipped image too;
here it is a separate row, and the boxes of both are merged after the graph.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from model_export.graph.heads import Head
from model_export.graph.peaks import Peaks, cell_positions, divide, gather, top_peaks

PAIRS = 1000
"""Pairs per image in the output, as many as *CornerNet* keeps."""

MAX_EMBEDDING_DISTANCE = 0.5
"""Corners whose embeddings differ by more belong to different objects (section 4.2)."""

IMPOSSIBLE = -1.0
"""Score of a pair that cannot be a box."""

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
    """The top-K corners of one kind in each image, by descending score."""

    scores: Tensor
    """float32 (N, K) in [0, 1]."""
    class_ids: Tensor
    """int64 (N, K)."""
    points: Tensor
    """float32 (N, K, 2), x before y, in cells."""
    embeddings: Tensor
    """float32 (N, K)."""


def decode_corner_pairs(
    maps: Mapping[str, Tensor], top_k: int, pairs: int = PAIRS
) -> tuple[Tensor, ...]:
    """Decode corner pairs: the outputs of :class:`model_package.CornerPairsDecoder`, in its order.

    ``maps`` are float32 (N, C, H, W) by head (:data:`PAIR_HEADS`), heatmaps in [0, 1];
    ``top_k`` is the number of corners of each kind that are paired, ``pairs`` that of the output.
    """
    return pair_corners(
        find_corners(maps, "top_left", top_k), find_corners(maps, "bottom_right", top_k), pairs
    )


def decode_corner_triplets(maps: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, ...]:
    """Decode corner pairs and centers: the outputs of :class:`model_package.CornerTripletsDecoder`.

    Centers are matched with pairs after the graph, in image pixels, because the central region is
    defined differently for small and large boxes (*Keypoint Triplets*, Duan et al. 2019,
    section 3.2).
    """
    peaks, points = _find_peaks(maps, "center", top_k)
    centers = (points, peaks.scores, peaks.class_ids.to(torch.int32))
    return *decode_corner_pairs(maps, top_k), *centers


def find_corners(maps: Mapping[str, Tensor], kind: str, top_k: int) -> Corners:
    """Return the ``top_k`` highest corners over all classes; ``kind``: top_left or bottom_right."""
    peaks, points = _find_peaks(maps, kind, top_k)
    embeddings = gather(maps[f"{kind}_embedding"], peaks.cells).squeeze(2)
    return Corners(peaks.scores, peaks.class_ids, points, embeddings)


def _find_peaks(maps: Mapping[str, Tensor], kind: str, top_k: int) -> tuple[Peaks, Tensor]:
    """Return the peaks of one heatmap and their points (N, K, 2) in cells, offsets included."""
    peaks = top_peaks(maps[f"{kind}_heatmap"], top_k)
    offset = maps[f"{kind}_offset"]
    return peaks, cell_positions(peaks.cells, offset.shape[3]) + gather(offset, peaks.cells)


def pair_corners(
    top_left: Corners,
    bottom_right: Corners,
    pairs: int,
    max_embedding_distance: float = MAX_EMBEDDING_DISTANCE,
) -> tuple[Tensor, ...]:
    """Return the best ``pairs`` of all K x K pairs of corners; ``pairs`` must be <= K * K.

    Returns scores float32 (N, P), the mean of both corner scores or :data:`IMPOSSIBLE`, class ids
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
    """Return which pairs (N, K, K) differ in class or in embedding, or have swapped corners."""
    distances = top_left.embeddings.unsqueeze(2) - bottom_right.embeddings.unsqueeze(1)
    swapped = bottom_right.points.unsqueeze(1) < top_left.points.unsqueeze(2)  # (N, K, K, 2)
    return (
        (top_left.class_ids.unsqueeze(2) != bottom_right.class_ids.unsqueeze(1))
        | (distances.abs() > max_embedding_distance)
        | swapped[..., 0]
        | swapped[..., 1]
    )


def _points(corners: Corners, rows: Tensor) -> Tensor:
    """Gather the points (N, P, 2) of ``rows`` (N, P)."""
    return corners.points.gather(1, rows.unsqueeze(2).expand(-1, -1, 2))
