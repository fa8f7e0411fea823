"""Box overlap and greedy matching, compared with hand calculations."""

import numpy as np
import pytest

from labels.matching import box_coverage, box_iou, match_boxes, match_greedily

LEFT, RIGHT, INSIDE = [0.0, 0, 10, 10], [5.0, 0, 15, 10], [2.0, 2, 4, 6]
EMPTY = np.empty((0, 4))


def test_iou_and_coverage_by_hand() -> None:
    boxes1, boxes2 = np.array([LEFT, [3, 3, 3, 9]]), np.array([LEFT, RIGHT, INSIDE])
    assert box_iou(boxes1, boxes2) == pytest.approx(np.array([[1, 1 / 3, 0.08], [0, 0, 0]]))
    assert box_coverage(boxes1, boxes2) == pytest.approx(np.array([[1, 0.5, 1], [0, 0, 0]]))
    assert box_iou(EMPTY, boxes2).shape == (0, 3)


def test_rows_are_matched_in_order_to_the_most_similar_free_column() -> None:
    similarity = np.array([[0.6, 0.9], [0.7, 0.95], [0.55, 0.9]])
    rows, columns = match_greedily(similarity, 0.6)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    assert similarity[1, 1] == 0.95, "the argument is not changed"


def test_the_minimum_similarity_is_inclusive_and_ties_take_the_first_column() -> None:
    rows, columns = match_greedily(np.array([[0.5, 0.5], [0.4, 0.4]]), 0.5)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_negated_distances_match_the_nearest() -> None:
    distances = np.float32([[3, 1, np.inf], [np.inf, np.inf, np.inf], [1, 0, 9]])
    rows, columns = match_greedily(-distances, -1)
    assert (rows.tolist(), columns.tolist()) == ([0, 2], [1, 0])


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_empty_inputs_have_no_matches(shape: tuple[int, int]) -> None:
    rows, columns = match_greedily(np.zeros(shape), 0)
    assert rows.shape == columns.shape == (0,)


def test_boxes_of_different_classes_do_not_match() -> None:
    boxes = np.array([LEFT, RIGHT])
    rows, columns = match_boxes(boxes, np.array([0, 1]), boxes, np.array([1, 1]), 0.3)
    assert (rows.tolist(), columns.tolist()) == ([1], [1])
