"""Precision, recall and F1 by score threshold, and the calibration of scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS: NDArray[np.float64] = np.arange(101) / 100
"""0, 0.01 ... 1."""
BINS = 10


@dataclass(frozen=True)
class ScoredDetections:
    """True and false positives with their scores.

    ``true_positives``, ``false_positives``: scores, float64; ``objects``: labelled objects.
    """

    true_positives: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    objects: int

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Return precision, recall and F1 of the detections with at least this score.

        NaN without such detections, or without objects.
        """
        correct = int((self.true_positives >= threshold).sum())
        found = correct + int((self.false_positives >= threshold).sum())
        return (
            _ratio(correct, found),
            _ratio(correct, self.objects),
            _ratio(2 * correct, found + self.objects),
        )

    def curves(self) -> NDArray[np.float64]:
        """Return precision, recall and F1 at each of :data:`THRESHOLDS`, float64 (3, 101)."""
        return np.array([self.at(threshold) for threshold in THRESHOLDS.tolist()]).T

    def best_threshold(self) -> float:
        """Return the one of :data:`THRESHOLDS` with the highest F1; NaN without any."""
        f1 = self.curves()[2]
        return float("nan") if np.isnan(f1).all() else float(THRESHOLDS[np.nanargmax(f1)])

    def calibration(self) -> NDArray[np.float64]:
        """Return detections, their mean score and their precision by score, float64 (BINS, 3).

        The bins are 0 to 0.1, 0.1 to 0.2 ...; mean and precision are NaN without detections.
        """
        scores = np.concatenate([self.true_positives, self.false_positives])
        is_correct = np.arange(len(scores)) < len(self.true_positives)
        bins = np.minimum((scores * BINS).astype(int), BINS - 1)
        counts, sums, correct = (
            np.bincount(bins, weights, BINS) for weights in (None, scores, is_correct)
        )
        divisor = np.where(counts, counts, np.nan)
        return np.stack([counts, sums / divisor, correct / divisor], axis=1)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
