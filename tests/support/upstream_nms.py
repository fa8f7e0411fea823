"""Reimplementation of the upstream soft-NMS with its mistakes, to test each of them separately."""

import numpy as np
from numpy.typing import NDArray


def soft_nms_like_upstream(
    rows: NDArray[np.float32],
    *,
    weight_exp: float | None = None,
    weights_move: bool = False,
    most: int | None = None,
) -> tuple[NDArray[np.float32], int]:
    """Run gaussian soft-NMS over the rows of one class; return all rows and how many survived.

    ``rows``: x1, y1, x2, y2, score and more. Stale copies follow the survivors; the upstream
    callers keep them. ``weight_exp``: merge boxes, with columns 5 and 6 as weights;
    ``weights_move``: whether the weights move with their boxes, which upstream omits; ``most``:
    stop after this number of selected boxes.
    """
    rows = rows.copy()
    moved = rows.shape[1] if weight_exp is None or weights_move else 5
    count, i = len(rows), 0
    while i < (count if most is None else min(count, most)):
        best = i + int(rows[i:count, 4].argmax())
        rows[[i, best], :moved] = rows[[best, i], :moved]
        rest = rows[i + 1 : count].copy()
        factors = _factors(rows[i], rest)
        lowered = rest[:, 4] * factors.astype(np.float32)
        removed = (lowered < 0.001) & (factors < 1)
        sources, positions = _shrink(removed)
        if weight_exp is not None:
            of_rest = sources if weights_move else positions
            weights = np.concatenate([rows[i : i + 1, 5:7], rest[of_rest, 5:7]])
            weights[1:] *= ((1 - factors[sources]) ** weight_exp)[:, None]
            weights = np.repeat(weights, 2, axis=1)
            boxes = np.concatenate([rows[i : i + 1, :4], rest[sources, :4]])
            rows[i, :4] = (boxes * weights).sum(axis=0) / weights.sum(axis=0)
        rest[:, 4] = lowered
        # Of several rows visited at one position, the last one remains, even if it was removed.
        rows[i + 1 + positions, :moved] = rest[sources, :moved]
        count -= int(removed.sum())
        i += 1
    return rows, count


def _factors(best: NDArray[np.float32], rest: NDArray[np.float32]) -> NDArray[np.float64]:
    sides = np.minimum(best[2:4], rest[:, 2:4]) - np.maximum(best[:2], rest[:, :2]) + 1
    intersects = (sides > 0).all(axis=1)
    shared = sides.prod(axis=1) * intersects
    areas = [(rows[..., 2:4] - rows[..., :2] + 1).prod(axis=-1) for rows in (best, rest)]
    return np.where(intersects, np.exp(-((shared / (areas[0] + areas[1] - shared)) ** 2) / 0.5), 1)


def _shrink(removed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order in which the upstream loop visits the rows, and the position of each.

    A removed row is overwritten by the last one, which is then visited at its position.
    """
    if not removed.any():
        return np.arange(len(removed)), np.arange(len(removed))
    sources, positions = [], []
    position, count, source = 0, len(removed), 0
    while position < count:
        sources.append(source)
        positions.append(position)
        if removed[source]:
            count -= 1
            source = count
        else:
            position += 1
            source = position
    return np.array(sources, int), np.array(positions, int)


def suppress_like_upstream(
    rows: NDArray[np.float32], class_ids: NDArray[np.int32], most: int, *, weight_exp: float | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Suppress each class and keep the ``most`` best: the upstream result and the correct one.

    Both are x1, y1, x2, y2, score, class, by descending score. The upstream result keeps stale
    copies, does not move weights and keeps every row with the last score; the correct one does not.
    """
    upstream, correct = [], []
    for class_id in np.unique(class_ids):
        of_class = rows[class_ids == class_id]
        every, _ = soft_nms_like_upstream(of_class, weight_exp=weight_exp)
        upstream.append(np.column_stack([every[:, :5], np.full(len(every), class_id)]))
        every, count = soft_nms_like_upstream(of_class, weight_exp=weight_exp, weights_move=True)
        correct.append(np.column_stack([every[:count, :5], np.full(count, class_id)]))
    both = [best_first(np.concatenate(parts)) for parts in (upstream, correct)]
    last = both[0][:most][-1, 4]
    return both[0][both[0][:, 4] >= last], both[1][:most]


def best_first(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Sort x1, y1, x2, y2, score, ... by descending score."""
    return rows[np.argsort(-rows[:, 4], kind="stable")]


def assert_same_rows(
    actual: NDArray[np.floating],
    expected: NDArray[np.floating],
    tolerance: float,
    score_tolerance: float = 1e-6,
) -> None:
    """Assert equal rows in any order: each row has a counterpart. Column 4 is the score."""
    assert actual.shape == expected.shape
    distances = np.abs(actual[:, None] - expected[None])
    fits = (distances <= tolerance).all(axis=2) & (distances[..., 4] <= score_tolerance)
    assert fits.any(axis=0).all(), distances.max(axis=2).min(axis=0).max()
    assert fits.any(axis=1).all()
