"""The upstream soft-NMS in plain words, with its mistakes, to account for them one by one."""

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

    ``rows``: x1, y1, x2, y2, score and more. Behind the survivors stand stale copies, which
    their callers keep. ``weight_exp``: merge boxes, with columns 5 and 6 as weights;
    ``weights_move``: whether those go with their boxes, which theirs do not do; ``most``: stop
    when as many are selected.
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
        gone = (lowered < 0.001) & (factors < 1)
        sources, places = _shrink(gone)
        if weight_exp is not None:
            weights = np.concatenate([rows[i : i + 1, 5:7], rest[places, 5:7]])
            weights[1:] *= ((1 - factors[sources]) ** weight_exp)[:, None]
            weights = np.repeat(weights, 2, axis=1)
            boxes = np.concatenate([rows[i : i + 1, :4], rest[sources, :4]])
            rows[i, :4] = (boxes * weights).sum(axis=0) / weights.sum(axis=0)
        rest[:, 4] = lowered
        # Of several rows met at one place the last one stays, also if it is gone itself.
        rows[i + 1 + places, :moved] = rest[sources, :moved]
        count -= int(gone.sum())
        i += 1
    return rows, count


def _factors(best: NDArray[np.float32], rest: NDArray[np.float32]) -> NDArray[np.float64]:
    sides = np.minimum(best[2:4], rest[:, 2:4]) - np.maximum(best[:2], rest[:, :2]) + 1
    meets = (sides > 0).all(axis=1)
    shared = sides.prod(axis=1) * meets
    areas = [(rows[..., 2:4] - rows[..., :2] + 1).prod(axis=-1) for rows in (best, rest)]
    return np.where(meets, np.exp(-((shared / (areas[0] + areas[1] - shared)) ** 2) / 0.5), 1)


def _shrink(gone: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """In which order their loop meets the rows, and at which place each one then stands.

    A row that is gone is overwritten by the last one, which is then met in its place.
    """
    if not gone.any():
        return np.arange(len(gone)), np.arange(len(gone))
    sources, places = [], []
    place, count, source = 0, len(gone), 0
    while place < count:
        sources.append(source)
        places.append(place)
        if gone[source]:
            count -= 1
            source = count
        else:
            place += 1
            source = place
    return np.array(sources, int), np.array(places, int)


def suppress_like_upstream(
    rows: NDArray[np.float32], class_ids: NDArray[np.int32], most: int, *, weight_exp: float | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All classes, then the ``most`` best: what they return, and what they should have.

    Both are x1, y1, x2, y2, score, class, best first. Theirs keeps the stale copies, moves no
    weights and keeps every row that shares the last score; the other does the opposite.
    """
    upstream, meant = [], []
    for class_id in np.unique(class_ids):
        of_class = rows[class_ids == class_id]
        every, _ = soft_nms_like_upstream(of_class, weight_exp=weight_exp)
        upstream.append(np.column_stack([every[:, :5], np.full(len(every), class_id)]))
        every, count = soft_nms_like_upstream(of_class, weight_exp=weight_exp, weights_move=True)
        meant.append(np.column_stack([every[:count, :5], np.full(count, class_id)]))
    both = [best_first(np.concatenate(parts)) for parts in (upstream, meant)]
    last = both[0][:most][-1, 4]
    return both[0][both[0][:, 4] >= last], both[1][:most]


def best_first(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Sort x1, y1, x2, y2, score, ... by descending score."""
    return rows[np.argsort(-rows[:, 4], kind="stable")]
