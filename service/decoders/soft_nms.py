"""Soft-NMS (*Soft-NMS*, Bodla et al. 2017), in float32 like the reference implementation.

Sides and overlaps count both end pixels (+1). What differs from the reference implementation:

* It overwrites a box that falls below the threshold by the last one and keeps the stale copies at
  the end of the array in its results; here only survivors are returned.
* Its merging variant moves boxes without their corner scores, so boxes are averaged with weights
  of other rows; here the weights belong to their rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Decay = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Overlaps (intersection over union) in [0, 1] to the factors that scores are multiplied by."""

FORGET_BELOW = 0.001
"""A box whose score was lowered to less than this is gone."""


@dataclass(frozen=True)
class Survivors:
    """What soft-NMS leaves, in the order of selection, which is that of the lowered scores.

    ``rows``: int64 (n,), indices into the input; ``scores``: float32 (n,), lowered; ``boxes_xyxy``:
    float32 (n, 4).
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]


def gaussian(sigma: float = 0.5) -> Decay:
    """Lower a score by exp(-overlap^2 / sigma), at any overlap."""

    def decay(overlaps: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.exp(overlaps * overlaps * np.float32(-1 / sigma)))

    return decay


def linear(overlap: float = 0.5) -> Decay:
    """Lower a score by 1 - overlap where the overlap is larger than ``overlap``."""

    def decay(overlaps: NDArray[np.float32]) -> NDArray[np.float32]:
        factors = np.where(overlaps > np.float32(overlap), 1 - overlaps, np.float32(1))
        # Not quite 0, which would revive what is marked with minus infinity.
        return np.maximum(factors, np.float32(1e-9))

    return decay


def soft_nms(
    boxes_xyxy: NDArray[np.floating],
    scores: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    *,
    top_k: int | None = None,
    decay: Decay | None = None,
    forget_below: float = FORGET_BELOW,
) -> Survivors:
    """Select the best box, lower the scores of its class that overlap it, and again.

    ``boxes_xyxy`` (n, 4), ``scores`` (n,), ``class_ids`` (n,); all classes in one pass, since they
    do not touch each other. Selected scores never rise, so the first ``top_k`` are the best.
    """
    return _select(boxes_xyxy, scores, class_ids, None, top_k, decay or gaussian(), forget_below)


def soft_nms_merge(
    boxes_xyxy: NDArray[np.floating],
    scores: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    corner_scores: NDArray[np.floating],
    *,
    top_k: int | None = None,
    weight_exp: float = 10.0,
    decay: Decay | None = None,
    forget_below: float = FORGET_BELOW,
) -> Survivors:
    """Do as :func:`soft_nms`, and draw each selected box towards those that it suppresses.

    Each corner becomes the mean over the selected and the suppressed boxes, weighted with their
    ``corner_scores`` (n, 2) (top-left, bottom-right) and, for the suppressed, with
    (1 - decay)^weight_exp. Upstream: the multi-scale configurations of the corner systems.
    """
    merge = _Merge(np.asarray(corner_scores, np.float32), weight_exp)
    return _select(boxes_xyxy, scores, class_ids, merge, top_k, decay or gaussian(), forget_below)


def _select(
    boxes_xyxy: NDArray[np.floating],
    scores: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    merge: "_Merge | None",
    top_k: int | None,
    decay: Decay,
    forget_below: float,
) -> Survivors:
    given = np.asarray(scores, np.float32)
    current = given.copy()
    pairs = _Pairs(np.asarray(boxes_xyxy, np.float32), class_ids, decay)
    most = len(given) if top_k is None else min(top_k, len(given))
    chosen: list[int] = []
    chosen_scores, chosen_corners = [], []
    while len(chosen) < most:
        best = int(current.argmax())
        score = current[best]
        if score == -np.inf:
            break
        # Forgotten when a selection brought it below; what began there and was not touched stays.
        # Nothing that low is a maximum before everything else is, so this is soon enough.
        if score < forget_below and score != given[best]:
            current[best] = -np.inf
            continue
        factors = pairs.factors(best, current)
        current[best] = -np.inf
        corners = pairs.corners[:, best]
        if merge is not None:
            alive = (current >= forget_below) | (current == given)
            corners = merge.corners(pairs.corners, best, factors, alive)
        current *= factors
        chosen.append(best)
        chosen_scores.append(score)
        chosen_corners.append(corners)
    return Survivors(
        np.array(chosen, np.int64),
        np.array(chosen_scores, np.float32),
        _boxes(np.array(chosen_corners, np.float32).reshape(-1, 4)),
    )


class _Pairs:
    """By which factor each box lowers each other one, worked out when it is needed.

    ``corners``: float32 (4, n), (-x1, -y1, x2 + 1, y2 + 1): the sides of an intersection are then
    sums of the minimum of all four at once.
    """

    # Boxes that are likely to be selected next are prepared together, since a call of numpy costs
    # as much as this many numbers.
    _NUMBERS_AT_ONCE = 8192

    def __init__(
        self, boxes: NDArray[np.float32], class_ids: NDArray[np.integer], decay: Decay
    ) -> None:
        self.corners = boxes.T.copy()
        self.corners[:2] *= -1
        self.corners[2:] += 1
        sides = np.maximum(self.corners[:2] + self.corners[2:], 0)
        # A box without an area meets nothing; the smallest area keeps its quotients at 0.
        self._areas = np.maximum(sides[0] * sides[1], np.float32(1e-30))
        self._class_ids = class_ids
        self._decay = decay
        self._rows_at_once = max(1, self._NUMBERS_AT_ONCE // max(1, len(boxes)))
        self._prepared: dict[int, int] = {}
        self._factors = np.zeros((0, len(boxes)), np.float32)

    def factors(self, best: int, current: NDArray[np.float32]) -> NDArray[np.float32]:
        """The factors (n,) for all boxes when ``best``, the highest of ``current``, is selected."""
        if best not in self._prepared:
            self._prepare(best, current)
        return np.asarray(self._factors[self._prepared[best]])

    def _prepare(self, best: int, current: NDArray[np.float32]) -> None:
        count = min(self._rows_at_once, len(current))
        rows = np.argpartition(current, -count)[-count:]
        if best not in rows:
            rows[0] = best  # as good as each of the others: they can only have tied with it
        nearest = np.minimum(self.corners[:, rows, None], self.corners[:, None, :])
        sides = nearest[:2] + nearest[2:]
        np.maximum(sides, 0, out=sides)
        shared = sides[0] * sides[1]
        shared *= self._class_ids[rows, None] == self._class_ids
        overlaps = shared / (self._areas[rows, None] + self._areas - shared)
        self._factors = self._decay(overlaps)
        self._prepared = {row: index for index, row in enumerate(rows.tolist())}


@dataclass(frozen=True)
class _Merge:
    corner_scores: NDArray[np.float32]
    weight_exp: float

    def corners(
        self,
        corners: NDArray[np.float32],
        best: int,
        factors: NDArray[np.float32],
        alive: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """The selected box after merging, (4,) like a column of ``corners``."""
        rows = np.flatnonzero(alive & (factors < 1))
        weights = (1 - factors[rows]) ** self.weight_exp
        rows, weights = np.append(rows, best), np.append(weights, np.float32(1))
        by_corner = np.repeat(self.corner_scores[rows] * weights[:, None], 2, axis=1).T
        return np.asarray((corners[:, rows] * by_corner).sum(axis=1) / by_corner.sum(axis=1))


def _boxes(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo the corners' signs and ends, (n, 4)."""
    boxes = corners.copy()
    boxes[:, :2] *= -1
    boxes[:, 2:] -= 1
    return boxes
