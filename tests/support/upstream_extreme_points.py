"""Restatement of the upstream decoding of extreme points, and the goldens of that decoding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.extreme_points import boxes_around

SIDES = ("top", "left", "bottom", "right")
MAX_GROUPS = 1000
MIN_SCORE = np.float32(0.1)

Map = NDArray[np.float32]


def groups_like_upstream(
    maps: Mapping[str, Map], top_k: int, *, agnostic: bool, edge_aggregation: float
) -> NDArray[np.float64]:
    """Score all combinations; return the valid ones among the best, by descending score.

    ``maps``: by head, (C, H, W), heatmaps in [0, 1]. Rows (n, 10): the score, x and y of the top,
    left, bottom and right point in cells of the output map, and the class.
    """
    sides = [
        _peaks(_aggregate(maps[f"{side}_heatmap"], index % 2, edge_aggregation), top_k)
        for index, side in enumerate(SIDES)
    ]
    members = np.stack(np.indices((top_k,) * 4), axis=-1).reshape(-1, 4)
    scores, classes, y, x = (
        np.stack([sides[side][name][members[:, side]] for side in range(4)], axis=1)
        for name in range(4)
    )
    of_class = maps["center_heatmap"].max(axis=0)[None] if agnostic else maps["center_heatmap"]
    middle = (y[:, 0] + y[:, 2]) // 2, (x[:, 1] + x[:, 3]) // 2
    centers = of_class[classes[:, 0], *middle]
    values = (scores.sum(axis=1) + 2 * centers) / 6
    is_invalid = (
        (scores < MIN_SCORE).any(axis=1) | (centers < MIN_SCORE),
        (classes != classes[:, :1]).any(axis=1),
        (y[:, :1] > y).any(axis=1),
        (x[:, 1:2] > x).any(axis=1),
        (y[:, 2:3] < y).any(axis=1),
        (x[:, 3:4] < x).any(axis=1),
    )
    values -= np.sum(is_invalid, axis=0)
    best = np.argsort(-values, kind="stable")[:MAX_GROUPS]
    best = best[values[best] > 0]
    class_ids = classes[:, 0]
    if agnostic:
        class_ids = maps["center_heatmap"].argmax(axis=0)[middle]
    points = np.stack((x[best], y[best]), axis=2).astype(np.float64)
    for index, side in enumerate(SIDES):
        points[:, index] += maps[f"{side}_offset"][:, y[best, index], x[best, index]].T
    return np.column_stack((values[best], points.reshape(-1, 8), class_ids[best]))


def unflip(
    points: NDArray[np.float64], width_cells: float, *, flipped: bool
) -> NDArray[np.float64]:
    """Return the top, left, bottom and right points (n, 4, 2) of the image itself, in cells."""
    return points[:, [0, 3, 2, 1]] * (-1, 1) + (width_cells, 0) if flipped else points


def groups_of_golden(
    golden: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the groups of the image and its flipped copy, in pixels of the image.

    Rows of box, score and class (from 1), as before soft-NMS, and the top, left, bottom and right
    points (n, 4, 2). Groups without a positive score are those that upstream rejects.
    """
    height, width = golden["s0_out_hw"]
    pixels_per_cell = golden["s0_meta_s"] / width
    origin = golden["s0_meta_c"] - pixels_per_cell * np.array((width, height)) / 2
    groups = golden["s0_dets"].astype(np.float64)
    points = groups[:, :, 5:13].reshape(2, -1, 4, 2)
    both = [unflip(points[index], width, flipped=bool(index)) for index in range(2)]
    in_image = np.concatenate(both) * pixels_per_cell + origin
    groups = groups.reshape(-1, 14)
    rows = np.column_stack((boxes_around(in_image), groups[:, 4], groups[:, 13] + 1))
    accepted = rows[:, 4] > 0
    return rows[accepted].astype(np.float32), in_image[accepted]


def _peaks(heatmap: Map, top_k: int) -> tuple[NDArray[Any], ...]:
    """Return score, class, row and column of the highest cells that no neighbour exceeds.

    Upstream clips scores at 1 before it selects peaks. Which of the clipped peaks it selects, and
    in which order, is undefined (``torch.topk``). Here they are in the order of their unclipped
    scores, which is one of the possible orders.
    """
    around = np.pad(heatmap, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = heatmap.shape[1:]
    highest = np.max(
        [around[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0
    )
    peaks = np.where(heatmap == highest, heatmap, 0)
    best = np.argsort(-peaks, axis=None, kind="stable")[:top_k]
    return np.minimum(peaks.ravel()[best], 1), *np.unravel_index(best, peaks.shape)


def _aggregate(heatmap: Map, axis: int, weight: float) -> Map:
    """Add the sums of the cells on both sides that rise towards each cell, ``weight`` times.

    ``axis``: 0 along rows, 1 along columns.
    """
    lines = np.moveaxis(heatmap, 1, 2) if axis else heatmap
    total = lines.copy()
    for reverse in (slice(None), slice(None, None, -1)):
        values = lines[..., reverse]
        sums = values.copy()
        for cell in range(1, values.shape[2]):
            rises = values[..., cell] >= values[..., cell - 1]
            sums[..., cell] += rises * sums[..., cell - 1]
        total += np.float32(weight) * (sums - values)[..., reverse]
    return np.moveaxis(total, 2, 1) if axis else total
