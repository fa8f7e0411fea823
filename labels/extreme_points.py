"""Grouping of extreme points by their centers (*ExtremeNet*, Zhou et al. 2019, section 4.2).

The reference implementation scores all K * K * K * K groups of a top, a left, a bottom and a right
point. Here a group is a pair of a top and a bottom point and a pair of a left and a right point;
pairs that cannot be part of an object, and those whose groups cannot be among the best, are left
out. The result is the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labels.outputs import Outputs

MAX_GROUPS = 1000
"""Groups per network input, as many as the reference implementation keeps."""

MIN_SCORE = 0.1
"""Lowest score of an extreme point and of a center (section 4.2)."""

_ROWS = 32
"""Pairs of a top and a bottom point that are combined at once: the arrays of a block stay in the
cache of the CPU."""

_ROUNDING = 1e-5
"""By which a float32 score can exceed its upper bound."""

_OCTAGON = (
    *((0, 0, -1), (0, 0, 1), (3, 1, -1), (3, 1, 1)),
    *((2, 0, 1), (2, 0, -1), (1, 1, 1), (1, 1, -1)),
)
"""Extreme point, axis and direction in which it is extended, of each corner."""

_Indices = NDArray[np.int64]
_Mask = NDArray[np.bool_]
_Points = NDArray[np.floating[Any]]


def group_extreme_points(outputs: Outputs) -> Outputs:
    """Return the best :data:`MAX_GROUPS` groups, by descending score.

    ``outputs``: those of one image that :class:`model_package.ExtremePointsDecoder` describes. The
    score of a group is the mean of the four points' scores and twice the center's, which is halfway
    between the points. In a group all classes are the same, no score is below :data:`MIN_SCORE`,
    and no point is beyond another one on its side; points may share a row, a column or a cell.

    Returns ``scores`` float32 (n,), ``class_ids`` int32 (n,), ``points`` float32 (n, 4, 2), top,
    left, bottom and right, and ``boxes`` float32 (n, 4), x1, y1, x2, y2, all in cells.
    """
    peaks = _Peaks(*(outputs[name] for name in ("scores", "class_ids", "cells", "center_scores")))
    members, columns, scores = _best_groups(peaks)
    top, bottom = members[:, 0], members[:, 2]
    points = outputs["points"][np.arange(4), members]
    class_ids = peaks.class_ids[0][top]
    if "center_class_ids" in outputs:
        class_ids = outputs["center_class_ids"][top, bottom, columns]
    return {
        "scores": scores,
        "class_ids": class_ids,
        "points": points,
        "boxes": boxes_around(points),
    }


def boxes_around(points: _Points) -> _Points:
    """Return x1, y1, x2, y2 of the top, left, bottom and right points (n, 4, 2)."""
    return np.stack((points[:, 1, 0], points[:, 0, 1], points[:, 3, 0], points[:, 2, 1]), axis=1)


def octagons(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return masks of the objects with these top, left, bottom and right points (n, 4, 2).

    *ExtremeNet*, section 4.4: each extreme point is extended along its side of the box to a quarter
    of the side's length, as far as the corners, and the ends are connected. Returns (n, 8, 2),
    clockwise from the left end of the top edge.
    """
    boxes = boxes_around(points).reshape(-1, 2, 2)
    low, high = boxes.min(axis=1), boxes.max(axis=1)
    eighths = (high - low) / 8
    corners = np.empty((len(points), 8, 2))
    for corner, (side, axis, sign) in enumerate(_OCTAGON):
        corners[:, corner] = points[:, side]
        moved = points[:, side, axis] + sign * eighths[:, axis]
        corners[:, corner, axis] = np.clip(moved, low[:, axis], high[:, axis])
    return corners


@dataclass(frozen=True)
class _Peaks:
    """Peaks of the four heatmaps, in the order top, left, bottom, right.

    ``scores``: float32 (4, K); ``class_ids``: int32 (4, K); ``cells``: int32 (4, K, 2), x before y;
    ``center_scores``: float32 (K, K, columns), the row of the heatmap of centers halfway between
    each top peak and each bottom peak.
    """

    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    cells: NDArray[np.int32]
    center_scores: NDArray[np.float32]


def _best_groups(peaks: _Peaks) -> tuple[_Indices, _Indices, NDArray[np.float32]]:
    """Return the peaks of each group (n, 4), the columns of their centers (n,) and the scores."""
    vertical, horizontal = _vertical_pairs(peaks), _horizontal_pairs(peaks)
    fits = _Compatible.of(peaks)
    found = np.empty(0, np.int64)
    scores = np.empty(0, np.float32)
    lowest = 0.0  # six times the lowest score that can still be among the best, rounded down
    for start in range(0, len(vertical.bounds), _ROWS):
        rows = slice(start, start + _ROWS)
        bound = vertical.bounds[start] + _ROUNDING
        # Both sides are sorted: later rows and columns are lower.
        width = int(np.searchsorted(-horizontal.sums, bound - lowest, side="right"))
        if width == 0:
            break
        indices, values = _combine(peaks, vertical, horizontal, fits, rows, width, lowest)
        found, scores = np.append(found, indices), np.append(scores, values)
        if len(scores) > MAX_GROUPS:
            kept = np.argpartition(-scores, MAX_GROUPS - 1)[:MAX_GROUPS]
            found, scores = found[kept], scores[kept]
            lowest = float(scores.min()) - _ROUNDING
    row, column = np.divmod(found, max(1, len(horizontal.sums)))
    members = np.stack(
        (
            vertical.first[row],
            horizontal.first[column],
            vertical.second[row],
            horizontal.second[column],
        ),
        axis=1,
    )
    # Equal scores in the order of the peaks, so that the result does not depend on the blocks.
    order = np.lexsort((*members.T[::-1], -scores))
    return members[order], horizontal.middles[column[order]], scores[order] / np.float32(6)


@dataclass(frozen=True)
class _VerticalPairs:
    """Top and bottom points, (n,) each, by descending ``bounds``.

    ``sums``: of both scores; ``bounds``: the same and twice the best center between them.
    """

    first: _Indices
    second: _Indices
    sums: NDArray[np.float32]
    bounds: NDArray[np.float32]


@dataclass(frozen=True)
class _HorizontalPairs:
    """Left and right points, (n,) each, by descending ``sums`` of both scores.

    ``middles``: column of the cell halfway between them.
    """

    first: _Indices
    second: _Indices
    sums: NDArray[np.float32]
    middles: _Indices


def _vertical_pairs(peaks: _Peaks) -> _VerticalPairs:
    best_centers = peaks.center_scores.max(axis=2)
    y = peaks.cells[..., 1]
    possible = _same_class(peaks, 0, 2) & (y[0][:, None] <= y[2]) & (best_centers >= MIN_SCORE)
    first, second = np.nonzero(possible & _strong(peaks, 0, 2))
    sums = peaks.scores[0][first] + peaks.scores[2][second]
    bounds = sums + 2 * best_centers[first, second]
    order = np.argsort(-bounds, kind="stable")
    return _VerticalPairs(first[order], second[order], sums[order], bounds[order])


def _horizontal_pairs(peaks: _Peaks) -> _HorizontalPairs:
    x = peaks.cells[..., 0]
    possible = _same_class(peaks, 1, 3) & (x[1][:, None] <= x[3])
    first, second = np.nonzero(possible & _strong(peaks, 1, 3))
    sums = peaks.scores[1][first] + peaks.scores[3][second]
    order = np.argsort(-sums, kind="stable")
    first, second = first[order], second[order]
    middles = (x[1][first].astype(np.int64) + x[3][second]) // 2
    return _HorizontalPairs(first, second, sums[order], middles)


def _same_class(peaks: _Peaks, side: int, other: int) -> _Mask:
    same: _Mask = peaks.class_ids[side][:, None] == peaks.class_ids[other]
    return same


def _strong(peaks: _Peaks, side: int, other: int) -> _Mask:
    strong = peaks.scores >= MIN_SCORE
    both: _Mask = strong[side][:, None] & strong[other]
    return both


@dataclass(frozen=True)
class _Compatible:
    """Which points of two adjacent sides fit each other, bool (K, K).

    Together they imply that the top point is above the bottom one and the left point is left of the
    right one.
    """

    top_left: _Mask
    top_right: _Mask
    bottom_left: _Mask
    bottom_right: _Mask

    @classmethod
    def of(cls, peaks: _Peaks) -> "_Compatible":
        x, y = peaks.cells[..., 0], peaks.cells[..., 1]

        def fit(vertical: int, horizontal: int) -> _Mask:
            rows = y[vertical][:, None], y[horizontal]
            columns = x[vertical][:, None], x[horizontal]
            inside = rows[0] <= rows[1] if vertical == 0 else rows[0] >= rows[1]
            beside = columns[1] <= columns[0] if horizontal == 1 else columns[1] >= columns[0]
            both: _Mask = inside & beside & _same_class(peaks, vertical, horizontal)
            return both

        return cls(fit(0, 1), fit(0, 3), fit(2, 1), fit(2, 3))


def _combine(
    peaks: _Peaks,
    vertical: _VerticalPairs,
    horizontal: _HorizontalPairs,
    fits: _Compatible,
    rows: slice,
    width: int,
    lowest: float,
) -> tuple[_Indices, NDArray[np.float32]]:
    """Combine the vertical pairs ``rows`` with the first ``width`` horizontal pairs.

    Returns the indices of groups, row * horizontal pairs + column, and six times their scores,
    which are at least ``lowest``.
    """
    top, bottom = vertical.first[rows], vertical.second[rows]
    left, right = horizontal.first[:width], horizontal.second[:width]
    centers = peaks.center_scores[top, bottom]
    sums = np.where(centers >= MIN_SCORE, 2 * centers + vertical.sums[rows][:, None], -np.inf)
    # Horizontal pairs along the first axis: rows that are contiguous are copied at once.
    scores = sums.T.take(horizontal.middles[:width], axis=0)
    scores += horizontal.sums[:width, None]
    possible = scores >= lowest
    possible &= (fits.top_left[top] & fits.bottom_left[bottom]).T.take(left, axis=0)
    possible &= (fits.top_right[top] & fits.bottom_right[bottom]).T.take(right, axis=0)
    chosen = np.flatnonzero(possible)
    column, row = np.divmod(chosen, possible.shape[1])
    return (row + rows.start) * len(horizontal.sums) + column, scores.ravel()[chosen]
