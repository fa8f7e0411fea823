"""Training targets of *CornerNet* (section 3.2) and *Keypoint Triplets* (section 3.1)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.sample import FloatArray, IntArray
from training.targets.centers import (
    check_count,
    corrected_gaussian_radius,
    draw_gaussian,
    gaussian_radius,
)

CORNER_NET_MIN_OVERLAP = 0.3
"""Smallest IoU of a box whose corners are off by the radius, in *CornerNet*'s configuration."""

_CORNER_SIGMAS, _CENTER_SIGMAS = 6, 5
"""Diameter of a Gaussian in standard deviations."""

Targets = Mapping[str, NDArray[Any]]


def corner_targets(
    boxes_xywh: FloatArray,
    class_ids: IntArray,
    *,
    num_classes: int,
    input_size: tuple[int, int],
    stride: int,
    max_objects: int,
) -> Targets:
    """Encode boxes, float32 (N, 4) in pixels of an input of this width and height.

    Maps have the input size divided by ``stride``, rounded up. Raises ``ValueError`` for more than
    ``max_objects`` objects.

    Returns, with K = ``max_objects`` and ``<corner>`` = ``top_left`` and ``bottom_right``:
        ``<corner>_heatmap``: float32 (classes, H, W), 1 at corners, Gaussian around them.
        ``<corner>_cells``: int64 (K,), flat cell ``y * W + x`` of each object's corner.
        ``<corner>_offset``: float32 (K, 2), corner minus its cell, 0...1.
        ``present``: float32 (K,), 1 for objects and 0 for unused slots.
    """
    boxes, shape = _to_cells(boxes_xywh, input_size, stride)
    radii = [
        corrected_gaussian_radius(height, width, CORNER_NET_MIN_OVERLAP)
        for width, height in _whole_sizes(boxes)
    ]
    return _encode(boxes, class_ids, radii, (num_classes, *shape), max_objects)


def triplet_targets(
    boxes_xywh: FloatArray,
    class_ids: IntArray,
    *,
    num_classes: int,
    input_size: tuple[int, int],
    stride: int,
    max_objects: int,
) -> Targets:
    """Encode boxes as :func:`corner_targets` does, with centers as a third point, ``center``.

    The radius differs: the reference implementation of *Keypoint Triplets* uses the formula that
    *CornerNet* has corrected since, with an overlap of 0.7.
    """
    boxes, shape = _to_cells(boxes_xywh, input_size, stride)
    radii = [gaussian_radius(height, width) for width, height in _whole_sizes(boxes)]
    map_shape = (num_classes, *shape)
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).astype(np.float32)
    return {
        **_encode(boxes, class_ids, radii, map_shape, max_objects),
        **_encode_keypoint(
            "center", centers, class_ids, radii, map_shape, max_objects, _CENTER_SIGMAS
        ),
    }


def _to_cells(
    boxes_xywh: FloatArray, input_size: tuple[int, int], stride: int
) -> tuple[FloatArray, tuple[int, int]]:
    """Return corners in cells, float32 (N, 4) x1, y1, x2, y2, and height and width of the maps."""
    width, height = (-(-side // stride) for side in input_size)
    corners = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    # The right edge of the right-most column would be in a cell outside of the map.
    last = np.array([input_size[0] - 1, input_size[1] - 1] * 2)
    cells_per_px = np.array([width / input_size[0], height / input_size[1]] * 2)
    return (np.clip(corners, 0, last) * cells_per_px).astype(np.float32), (height, width)


def _whole_sizes(boxes: FloatArray) -> list[list[float]]:
    sizes: list[list[float]] = np.ceil(boxes[:, 2:] - boxes[:, :2]).astype(np.float64).tolist()
    return sizes


def _encode(
    boxes: FloatArray,
    class_ids: IntArray,
    radii: list[float],
    map_shape: tuple[int, int, int],
    max_objects: int,
) -> Targets:
    check_count(len(boxes), max_objects)
    corners = {"top_left": boxes[:, :2], "bottom_right": boxes[:, 2:]}
    targets = {"present": (np.arange(max_objects) < len(boxes)).astype(np.float32)}
    for name, points in corners.items():
        targets |= _encode_keypoint(
            name, points, class_ids, radii, map_shape, max_objects, _CORNER_SIGMAS
        )
    return targets


def _encode_keypoint(
    name: str,
    points: FloatArray,
    class_ids: IntArray,
    radii: list[float],
    map_shape: tuple[int, int, int],
    max_objects: int,
    sigmas: int,
) -> dict[str, NDArray[Any]]:
    heatmap = np.zeros(map_shape, np.float32)
    cells = np.zeros(max_objects, np.int64)
    offset = np.zeros((max_objects, 2), np.float32)
    for index, (point, class_id, radius) in enumerate(zip(points, class_ids, radii, strict=True)):
        x, y = point.astype(np.int64).tolist()
        draw_gaussian(heatmap[class_id], x, y, max(0, int(radius)), sigmas)
        cells[index] = y * map_shape[2] + x
        offset[index] = point - (x, y)
    return {f"{name}_heatmap": heatmap, f"{name}_cells": cells, f"{name}_offset": offset}
