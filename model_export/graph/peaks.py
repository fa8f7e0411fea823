"""Peak extraction and box decoding: *Objects as Points*, section 4; replaces NMS.

Runs inside the exported graph, so that its outputs are a few hundred numbers per image, not maps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CELL_CENTER = 0.5
"""Upstream offset of a peak inside its cell if the network predicts none."""

_SMALLEST_MAP_CELLS = 64  # of an input of 32x32, the smallest of all networks


class Peaks(NamedTuple):
    """The top-K peaks of each image by descending score; every tensor is (N, K)."""

    scores: Tensor
    """float32; 0 if a map has fewer than K peaks."""
    class_ids: Tensor
    """int64, 0-based."""
    cells: Tensor
    """int64, row * W + column."""


def keep_peaks(heatmap: Tensor) -> Tensor:
    """Set cells below one of their eight neighbours to 0; float32 (N, C, H, W) in [0, 1].

    Cells that share the maximum of their 3x3 neighbourhood are all kept, as upstream.
    """
    highest_around = functional.max_pool2d(heatmap, 3, stride=1, padding=1)
    return torch.where(heatmap == highest_around, heatmap, 0.0)


def top_peaks(heatmap: Tensor, top_k: int) -> Peaks:
    """Return the ``top_k`` highest peaks over all classes of (N, C, H, W).

    Upstream takes the top K per class and then the top K of those, with the same result. One TopK
    over C*H*W is also faster in ONNX Runtime: 4 ms at 80x128x128 on one thread, sigmoid and peak
    test included, against 8 ms for a TopK over the maxima of all cells first (the maximum over
    classes strides through the whole map).
    """
    classes, height, width = heatmap.shape[1:]
    scores, indices = top_of_rows(keep_peaks(heatmap).flatten(1), top_k, classes)
    class_ids, cells = divide(indices, height * width)
    return Peaks(scores, class_ids.clamp(max=classes - 1), cells.clamp(max=height * width - 1))


def top_of_rows(values: Tensor, top_k: int, maps_per_row: int) -> tuple[Tensor, Tensor]:
    """Return the ``top_k`` highest non-negative ``values`` of the last axis, and their indices.

    A row holds ``maps_per_row`` maps. If the smallest maps have fewer than ``top_k`` values, the
    row is padded with zeros, whose indices are past its end.
    """
    if maps_per_row * _SMALLEST_MAP_CELLS < top_k:
        values = functional.pad(values, (0, top_k))
    scores, indices = torch.topk(values, top_k)
    return scores, indices


def cell_positions(cells: Tensor, width: int) -> Tensor:
    """Convert cell indices, int64 (...), to x and y, (..., 2)."""
    rows, columns = divide(cells, width)
    return torch.stack((columns, rows), dim=-1)


def divide(indices: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Return quotient and remainder of ``indices``, int64 and not negative.

    Without ``%``, which PyTorch's exporter rejects for a dynamic divisor.
    """
    quotient = indices // divisor
    return quotient, indices - quotient * divisor


Maps = Mapping[str, Tensor]
"""Activated maps, float32 (N, C, H, W), by head; the values of heatmaps are in [0, 1]."""


class CenterBoxes(NamedTuple):
    """The boxes at the top-K peaks of each image."""

    peaks: Peaks
    centers: Tensor
    """float32 (N, K, 2) in cells, x before y."""
    sizes: Tensor
    """float32 (N, K, 2) in cells, width before height."""


PartDecoder = Callable[[Maps, CenterBoxes], tuple[Tensor, ...]]
"""Decodes the further heads of a task at the peaks of the boxes, each output (N, K, ...)."""


def decode_centers(maps: Maps, top_k: int, parts: Sequence[PartDecoder] = ()) -> tuple[Tensor, ...]:
    """Decode boxes, and what each of ``parts`` decodes at the same peaks.

    Returns the outputs of the center decoders of :mod:`model_package`, in their order.
    """
    peaks = top_peaks(maps["heatmap"], top_k)
    boxes = boxes_at_peaks(peaks, maps.get("offset"), maps["size"])
    outputs = (peaks.scores, peaks.class_ids.to(torch.int32), boxes.centers, boxes.sizes)
    return sum((part(maps, boxes) for part in parts), outputs)


def boxes_at_peaks(peaks: Peaks, offset: Tensor | None, size: Tensor) -> CenterBoxes:
    """Return the boxes at ``peaks``.

    ``offset`` and ``size`` are float32 (N, 2, H, W). A center is the peak's integer cell plus the
    offset there, or plus :data:`CELL_CENTER` if the network predicts no offset.
    """
    positions = cell_positions(peaks.cells, size.shape[3])
    shift = CELL_CENTER if offset is None else gather(offset, peaks.cells)
    return CenterBoxes(peaks, positions + shift, gather(size, peaks.cells))


def gather(maps: Tensor, cells: Tensor) -> Tensor:
    """Gather the values of (N, C, H, W) at ``cells`` (N, K): (N, K, C)."""
    channels = maps.shape[1]
    return maps.flatten(2).gather(2, cells.unsqueeze(1).expand(-1, channels, -1)).transpose(1, 2)
