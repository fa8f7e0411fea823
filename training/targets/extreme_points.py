"""Training targets of extreme points (*ExtremeNet*, Zhou et al. 2019, section 4.1)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.graph.extreme_points import SIDES
from training.data.sample import FloatArray, IntArray
from training.targets.centers import center_radius, check_count, draw_gaussian


def extreme_point_targets(
    points: FloatArray,
    class_ids: IntArray,
    *,
    num_classes: int,
    map_height: int,
    map_width: int,
    stride: int,
    max_objects: int,
    agnostic: bool,
) -> Mapping[str, NDArray[Any]]:
    """Encode the top, left, bottom and right points, float32 (N, 4, 2) in network input pixels.

    As in the reference implementation, points are clipped to the map, objects without an area
    there are left out, and the center is halfway between the points. Raises ``ValueError`` for more
    than ``max_objects`` objects.

    Returns, with K = ``max_objects`` and ``<side>`` of :data:`SIDES`:
        ``<side>_heatmap``: float32 (classes, H, W), or (1, H, W) if ``agnostic``, 1 at the points,
            Gaussian around them; ``center_heatmap``, always (classes, H, W).
        ``<side>_cells``: int64 (K,), flat cell ``y * W + x`` of each object's point.
        ``<side>_offset``: float32 (K, 2), point minus its cell, 0...1.
        ``present``: float32 (K,), 1 for objects and 0 for unused slots.
    """
    check_count(len(points), max_objects)
    channels = 1 if agnostic else num_classes
    targets: dict[str, NDArray[Any]] = {
        "present": np.zeros(max_objects, np.float32),
        "center_heatmap": np.zeros((num_classes, map_height, map_width), np.float32),
    }
    for side in SIDES:
        targets[f"{side}_heatmap"] = np.zeros((channels, map_height, map_width), np.float32)
        targets[f"{side}_cells"] = np.zeros(max_objects, np.int64)
        targets[f"{side}_offset"] = np.zeros((max_objects, 2), np.float32)
    in_cells = np.clip(points / stride, 0, (map_width - 1, map_height - 1)).astype(np.float32)
    for index, (of_object, class_id) in enumerate(zip(in_cells, class_ids.tolist(), strict=True)):
        (_, top), (left, _), (_, bottom), (right, _) = of_object
        size = np.array((right - left, bottom - top), np.float32)
        if (size <= 0).any():
            continue
        radius = center_radius(np.ceil(size))
        for side, point in zip(SIDES, of_object, strict=True):
            x, y = point.astype(np.int64).tolist()
            draw_gaussian(targets[f"{side}_heatmap"][0 if agnostic else class_id], x, y, radius)
            targets[f"{side}_cells"][index] = y * map_width + x
            targets[f"{side}_offset"][index] = point - (x, y)
        center_x, center_y = int((left + right) / 2), int((top + bottom) / 2)
        draw_gaussian(targets["center_heatmap"][class_id], center_x, center_y, radius)
        targets["present"][index] = 1.0
    return targets
