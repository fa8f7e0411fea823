"""Peaks of a heatmap: the part of *Objects as Points*, section 4, that stands in for suppression.

Runs inside the exported graph, so that a few hundred numbers per image leave it and no maps do.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MIDDLE_OF_CELL = 0.5
"""Where the authors put a peak inside its cell when no offset is predicted."""

_SMALLEST_MAP_CELLS = 64  # from an input of 32x32, the smallest that any network takes


class Peaks(NamedTuple):
    """The best peaks of each heatmap, best first; every tensor is (N, K)."""

    scores: Tensor
    """float32, 0 where a map has fewer than K peaks."""
    class_ids: Tensor
    """int64, from 0."""
    cells: Tensor
    """int64, row * W + column."""


def keep_peaks(heatmap: Tensor) -> Tensor:
    """Set to 0 what is lower than one of its eight neighbours; float32 (N, C, H, W) in [0, 1].

    Cells that share the maximum of their neighbourhood all stay, as with the authors.
    """
    highest_around = functional.max_pool2d(heatmap, 3, stride=1, padding=1)
    return torch.where(heatmap == highest_around, heatmap, 0.0)


def top_peaks(heatmap: Tensor, top_k: int) -> Peaks:
    """Take the ``top_k`` highest peaks over all classes of (N, C, H, W).

    The authors take K per class first and then K of those, which gives the same K. One TopK over
    C*H*W is also the faster form in ONNX Runtime: 4 ms at 80x128x128 on one thread, sigmoid and
    peak test included, against 8 ms when the K best cells are found by their maxima first (the
    maximum over classes strides through the whole map).
    """
    classes, height, width = heatmap.shape[1:]
    scores, indices = top_of_rows(keep_peaks(heatmap).flatten(1), top_k, classes)
    class_ids, cells = divide(indices, height * width)
    return Peaks(scores, class_ids.clamp(max=classes - 1), cells.clamp(max=height * width - 1))


def top_of_rows(values: Tensor, top_k: int, maps_per_row: int) -> tuple[Tensor, Tensor]:
    """Take the ``top_k`` highest of the last axis of ``values``, which are not below 0.

    A row holds ``maps_per_row`` whole maps. Where maps can have so few cells that this is fewer
    than ``top_k`` values, the rest is zeros, with indices past the end.
    """
    if maps_per_row * _SMALLEST_MAP_CELLS < top_k:
        values = functional.pad(values, (0, top_k))
    scores, indices = torch.topk(values, top_k)
    return scores, indices


def cell_positions(cells: Tensor, width: int) -> Tensor:
    """Turn cells, int64 (...), into x and y, (..., 2)."""
    rows, columns = divide(cells, width)
    return torch.stack((columns, rows), dim=-1)


def divide(indices: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of ``indices``, int64 and not negative.

    Not with ``%``, which PyTorch's exporter refuses where the divisor is a free size.
    """
    quotient = indices // divisor
    return quotient, indices - quotient * divisor


def pick_boxes(maps: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find boxes: the outputs of :class:`model_package.CenterBoxesDecoder`, in its order.

    ``maps`` are float32 (N, C, H, W) by head; the heatmap's values are in [0, 1].
    """
    peaks = top_peaks(maps["heatmap"], top_k)
    centers, sizes = place_boxes(peaks, maps.get("offset"), maps["size"])
    return peaks.scores, peaks.class_ids.to(torch.int32), centers, sizes


def place_boxes(peaks: Peaks, offset: Tensor | None, size: Tensor) -> tuple[Tensor, Tensor]:
    """Read centers and sizes of ``peaks`` from their maps, float32 (N, 2, H, W) each.

    Returns two float32 (N, K, 2) in cells, x before y; a center is the peak's integer cell plus
    the offset there, or its middle where the network predicts no offset.
    """
    positions = cell_positions(peaks.cells, size.shape[3])
    shift = MIDDLE_OF_CELL if offset is None else gather(offset, peaks.cells)
    return positions + shift, gather(size, peaks.cells)


def gather(maps: Tensor, cells: Tensor) -> Tensor:
    """Read (N, C, H, W) at ``cells`` (N, K): (N, K, C)."""
    channels = maps.shape[1]
    return maps.flatten(2).gather(2, cells.unsqueeze(1).expand(-1, channels, -1)).transpose(1, 2)
