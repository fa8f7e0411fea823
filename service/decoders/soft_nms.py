"""Soft-NMS (*Soft-NMS*, Bodla et al. 2017) in float32, and its variant that merges boxes.

Implemented here because no library has what the reference implementation does: torchvision has
only hard NMS, OpenCV's ``softNMSBoxes`` takes integer boxes of a single class, and neither merges
boxes. Widths, heights and overlaps include both end pixels (``end_px`` = 1), as in the reference
implementation; MMDetection's do not (0). Two mistakes of the reference are corrected:

* It overwrites a box that falls below the minimum score by the last one, and returns the stale
  copies at the end of the array; here only the selected boxes are returned.
* Its merging variant reorders boxes without their corner scores, so boxes are averaged with the
  weights of other boxes; here the weights stay with their boxes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGMA = 0.5
"""The decay of a score is exp(-IoU^2 / sigma)."""
MIN_SCORE = 0.001
"""Boxes whose score was decayed below this are dropped."""
_WEIGHT_EXPONENT = 10.0
"""Of the weight with which a suppressed box is merged, (1 - decay)^10."""


@dataclass(frozen=True)
class SoftNMSResult:
    """Boxes that soft-NMS selected, in order of selection: by descending decayed score.

    ``rows``: int64 (n,), indices into the input; ``scores``: float32 (n,), decayed;
    ``boxes_xyxy``: float32 (n, 4), in the unit of the input.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]


def soft_nms(
    boxes_xyxy: NDArray[np.floating],
    scores: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    *,
    top_k: int | None = None,
    sigma: float = SIGMA,
    min_score: float = MIN_SCORE,
    end_px: float = 1.0,
) -> SoftNMSResult:
    """Repeatedly select the best box and decay the scores of its class by their IoU with it.

    ``boxes_xyxy`` (n, 4), ``scores`` (n,), ``class_ids`` (n,). All classes are processed in one
    pass, since they do not affect each other. Stops after ``top_k`` boxes, which are the best:
    scores only decrease.
    """
    pairwise = _PairwiseDecay(boxes_xyxy, class_ids, sigma, end_px)
    return _select(pairwise, scores, None, top_k, min_score)


def soft_nms_merge(
    boxes_xyxy: NDArray[np.floating],
    scores: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    corner_scores: NDArray[np.floating],
    *,
    top_k: int | None = None,
    end_px: float = 1.0,
) -> SoftNMSResult:
    """Do :func:`soft_nms`, and average each selected box with the boxes that it suppresses.

    Each corner becomes the mean over the selected and the suppressed boxes, weighted by their
    ``corner_scores`` (n, 2) (top-left, bottom-right) and, for the suppressed ones, by
    (1 - decay)^10. Used by the multi-scale configurations of CornerNet and CenterNet:
    Keypoint Triplets.
    """
    merge = _BoxMerging(np.asarray(corner_scores, np.float32))
    pairwise = _PairwiseDecay(boxes_xyxy, class_ids, SIGMA, end_px)
    return _select(pairwise, scores, merge, top_k, MIN_SCORE)


def _select(
    pairwise: "_PairwiseDecay",
    scores: NDArray[np.floating],
    merge: "_BoxMerging | None",
    top_k: int | None,
    min_score: float,
) -> SoftNMSResult:
    original = np.asarray(scores, np.float32)
    current = original.copy()  # -inf once a box is selected or dropped
    max_count = len(original) if top_k is None else min(top_k, len(original))
    selected: list[int] = []
    selected_scores, selected_corners = [], []
    while len(selected) < max_count:
        best = int(current.argmax())
        score = current[best]
        if score == -np.inf:
            break
        # Drop a box that was decayed below the minimum, but keep one that started there. Checked
        # only when it is the maximum, which is after all boxes with higher scores.
        if score < min_score and score != original[best]:
            current[best] = -np.inf
            continue
        factors = pairwise.factors(best, current)
        current[best] = -np.inf
        corners = pairwise.corners[:, best]
        if merge is not None:
            alive = (current >= min_score) | (current == original)
            corners = merge.corners(pairwise.corners, best, factors, alive)
        current *= factors
        selected.append(best)
        selected_scores.append(score)
        selected_corners.append(corners)
    return SoftNMSResult(
        np.array(selected, np.int64),
        np.array(selected_scores, np.float32),
        pairwise.to_boxes(np.array(selected_corners, np.float32).reshape(-1, 4)),
    )


class _PairwiseDecay:
    """Decay factors between all pairs of boxes, computed on demand.

    ``corners``: float32 (4, n), rows -x1, -y1, x2 + end_px, y2 + end_px: an elementwise minimum of
    two columns gives their intersection, and the sum of its halves the intersection's sides.
    """

    # Number of factors computed at once, for the boxes with the highest scores: those are likely
    # to be selected next, and a NumPy call costs as much as about this many elements.
    _BLOCK_SIZE = 8192

    def __init__(
        self,
        boxes_xyxy: NDArray[np.floating],
        class_ids: NDArray[np.integer],
        sigma: float,
        end_px: float,
    ) -> None:
        boxes = np.asarray(boxes_xyxy, np.float32)
        self._end_px = np.float32(end_px)
        self.corners = boxes.T.copy()
        self.corners[:2] *= -1
        self.corners[2:] += self._end_px
        sides = np.maximum(self.corners[:2] + self.corners[2:], 0)
        # A box with no area has IoU 0 with all others; this minimum avoids 0 / 0.
        self._areas = np.maximum(sides[0] * sides[1], np.float32(1e-30))
        self._class_ids = class_ids
        self._exponent = np.float32(-1 / sigma)
        self._rows_per_block = max(1, self._BLOCK_SIZE // max(1, len(boxes)))
        self._computed: dict[int, int] = {}
        self._factors = np.zeros((0, len(boxes)), np.float32)

    def factors(self, best: int, current: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the factors (n,) for all boxes; ``best`` is the maximum of ``current`` (n,)."""
        if best not in self._computed:
            self._compute(best, current)
        return np.asarray(self._factors[self._computed[best]])

    def to_boxes(self, corners: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert rows (m, 4) like the columns of ``corners`` to boxes (m, 4), x1, y1, x2, y2."""
        boxes = corners.copy()
        boxes[:, :2] *= -1
        boxes[:, 2:] -= self._end_px
        return boxes

    def _compute(self, best: int, current: NDArray[np.float32]) -> None:
        count = min(self._rows_per_block, len(current))
        rows = np.argpartition(current, -count)[-count:]
        if best not in rows:
            rows[0] = best  # only a tie can leave it out, so any row may be replaced
        inner = np.minimum(self.corners[:, rows, None], self.corners[:, None, :])
        sides = inner[:2] + inner[2:]
        np.maximum(sides, 0, out=sides)
        intersections = sides[0] * sides[1]
        intersections *= self._class_ids[rows, None] == self._class_ids
        ious = intersections / (self._areas[rows, None] + self._areas - intersections)
        self._factors = np.asarray(np.exp(ious * ious * self._exponent))
        self._computed = {row: index for index, row in enumerate(rows.tolist())}


@dataclass(frozen=True)
class _BoxMerging:
    """Weighted averages of selected boxes with those that they suppress."""

    corner_scores: NDArray[np.float32]

    def corners(
        self,
        corners: NDArray[np.float32],
        best: int,
        factors: NDArray[np.float32],
        alive: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Return the merged box ``best``, (4,), like a column of ``corners`` (4, n)."""
        rows = np.flatnonzero(alive & (factors < 1))
        weights = (1 - factors[rows]) ** _WEIGHT_EXPONENT
        rows, weights = np.append(rows, best), np.append(weights, np.float32(1))
        corner_weights = np.repeat(self.corner_scores[rows] * weights[:, None], 2, axis=1).T
        return np.asarray(
            (corners[:, rows] * corner_weights).sum(axis=1) / corner_weights.sum(axis=1)
        )
