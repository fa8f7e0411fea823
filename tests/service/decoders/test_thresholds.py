"""Filtering the detections of a low threshold gives those of a higher one, as the page does."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.decoders import CASES, Case, K, model_outputs
from service.decoders import DECODERS
from service.decoders.types import DetectionOptions, Detections

by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def decode(
    case: Case, threshold: float, class_ids: frozenset[int] | None = None, top_k: int = K
) -> Detections:
    outputs = model_outputs(case, np.random.default_rng(5))
    options = DetectionOptions(threshold, top_k, class_ids, case.soft_nms)
    return DECODERS[case.config.kind](case.config).decode(outputs, options)


def assert_equal_rows(found: Detections, whole: Detections, mask: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(found.scores, whole.scores[mask])
    np.testing.assert_array_equal(found.class_ids, whole.class_ids[mask])
    np.testing.assert_array_equal(found.boxes_xyxy, whole.boxes_xyxy[mask])


@by_case
def test_a_threshold_can_be_applied_to_the_response(case: Case) -> None:
    whole = decode(case, 0.0)
    assert len(whole) > 5
    for threshold in np.quantile(whole.scores, [0.1, 0.5, 0.9]).tolist():
        found = decode(case, threshold)
        assert 0 < len(found) < len(whole)
        assert_equal_rows(found, whole, whole.scores >= threshold)


@by_case
def test_a_class_filter_can_be_applied_to_the_response(case: Case) -> None:
    whole = decode(case, 0.0)
    class_id = int(whole.class_ids[len(whole) // 2])
    mask = whole.class_ids == class_id
    found = decode(case, 0.0, frozenset({class_id}), int(mask.sum()))
    # Where there are more boxes than top_k, the filter of the service can return more of them.
    assert_equal_rows(found, whole, mask)
