"""Precision, recall and F1 by score, and calibration, by hand."""

import numpy as np
import pytest

from evaluation.metrics.thresholds import THRESHOLDS, ScoredDetections

SCORED = ScoredDetections(np.array([0.95, 0.7, 0.2]), np.array([0.9, 0.3, 0.2, 0.05]), 4)


def test_precision_recall_and_f1_by_hand() -> None:
    assert SCORED.at(0.0) == pytest.approx((3 / 7, 3 / 4, 6 / 11))
    assert SCORED.at(0.3) == pytest.approx((2 / 4, 2 / 4, 4 / 8))  # a score equal to it counts
    assert SCORED.at(0.7) == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    precision, recall, f1 = SCORED.at(0.96)
    assert np.isnan(precision)
    assert (recall, f1) == (0, 0)
    assert np.isnan(ScoredDetections(np.array([]), np.array([]), 0).at(0.5)).all()


def test_the_curves_contain_the_values_at_each_threshold() -> None:
    curves = SCORED.curves()
    assert curves.shape == (3, len(THRESHOLDS))
    assert curves[:, 70] == pytest.approx(SCORED.at(0.7))
    assert SCORED.best_threshold() == pytest.approx(0.06)  # F1 6 / 10
    assert np.isnan(ScoredDetections(np.array([]), np.array([]), 0).best_threshold())


def test_calibration_by_hand() -> None:
    bins = SCORED.calibration()
    assert bins[:, 0].tolist() == [1, 0, 2, 1, 0, 0, 0, 1, 0, 2]
    assert bins[2] == pytest.approx([2, 0.2, 0.5])
    assert bins[9] == pytest.approx([2, 0.925, 0.5])
    assert np.isnan(bins[1, 1:]).all()
    exact = ScoredDetections(np.array([1.0]), np.array([]), 1)
    assert exact.calibration()[9] == pytest.approx([1, 1, 1])
