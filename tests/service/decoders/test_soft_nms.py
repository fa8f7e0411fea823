"""Soft-NMS against arrays of the reference implementation (``unit_softnms.npz``)."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.upstream_nms import soft_nms_like_upstream

from model_package import CornerPairsDecoder
from service.decoders.corner_pairs import CornerPairs
from service.decoders.soft_nms import soft_nms, soft_nms_merge
from service.decoders.types import DetectionOptions, ModelOutput
from service.imaging.geometry import AffineTransform, ImageTransform


@pytest.fixture(scope="module")
def golden(project: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(project / "tests/upstream/goldens/unit_softnms.npz") as file:
        return dict(file)


def one_class(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    return rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int32)


VARIANTS: dict[str, dict[str, float]] = {
    "gauss": {},
    "gauss_t01": {"min_score": 0.1},
    "gauss_sig02": {"sigma": 0.2},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [1, 2, 5, 30, 120])
def test_selected_boxes_equal_upstream(
    golden: dict[str, NDArray[np.float32]], count: int, variant: str
) -> None:
    result = soft_nms(*one_class(golden[f"b{count}"]), **VARIANTS[variant])
    # The upstream array has stale copies after the selected boxes.
    selected = golden[f"b{count}_{variant}"][: int(golden[f"b{count}_{variant}_nkeep"])]
    assert len(result.rows) == len(selected)
    assert np.abs(result.boxes_xyxy - selected[:, :4]).max() <= 1e-4
    assert np.abs(result.scores - selected[:, 4]).max() <= 1e-6
    assert np.abs(golden[f"b{count}"][result.rows, :4] - selected[:, :4]).max() == 0


def test_rows_index_the_keypoints_of_the_selected_boxes(
    golden: dict[str, NDArray[np.float32]],
) -> None:
    result = soft_nms(*one_class(golden["p120"]))
    selected = golden["p120_gauss"][: int(golden["p120_nkeep"])]
    assert np.array_equal(golden["p120"][result.rows, 5:], selected[:, 5:])


def test_accepts_empty_input() -> None:
    result = soft_nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32))
    assert result.boxes_xyxy.shape == (0, 4)
    assert len(result.rows) == len(result.scores) == 0


def test_classes_are_independent_and_top_k_is_a_prefix(
    golden: dict[str, NDArray[np.float32]],
) -> None:
    boxes, scores, _ = one_class(golden["b120"])
    classes = np.arange(120) % 3
    together = soft_nms(boxes, scores, classes)
    assert np.all(np.diff(together.scores) <= 0)
    for class_id in range(3):
        alone = soft_nms(boxes[classes == class_id], scores[classes == class_id], np.zeros(40))
        of_class = classes[together.rows] == class_id
        assert np.array_equal(together.scores[of_class], alone.scores)
        assert np.array_equal(
            together.rows[of_class], np.flatnonzero(classes == class_id)[alone.rows]
        )
    best = soft_nms(boxes, scores, classes, top_k=10)
    assert np.array_equal(best.rows, together.rows[:10])
    assert np.array_equal(best.scores, together.scores[:10])


def test_boxes_without_area_have_no_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [8, 8, 2, 2], [5, 5, 4, 4], [0, 0, 10, 10]])
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    result = soft_nms(boxes, scores, np.zeros(4, np.int32))
    assert np.allclose(result.scores, [0.9, 0.8, 0.7, 0.6 * np.exp(-2)])


@pytest.mark.parametrize("count", [1, 2, 5, 30, 120])
def test_merging_equals_upstream_except_for_the_weights(
    golden: dict[str, NDArray[np.float32]], count: int
) -> None:
    rows, upstream = golden[f"m{count}"], golden[f"m{count}_merge10"]
    kept = int(golden[f"m{count}_nkeep"])
    # The restatement equals upstream; with weights that move it is upstream without the mistake.
    restated, _ = soft_nms_like_upstream(rows, weight_exp=10)
    assert np.allclose(restated, upstream, atol=1e-3)
    every, _ = soft_nms_like_upstream(rows, weight_exp=10, weights_move=True)
    corrected = every[:kept]
    result = soft_nms_merge(*one_class(rows), rows[:, 5:7])
    assert len(result.rows) == kept
    assert np.abs(result.scores - corrected[:, 4]).max() <= 1e-6
    assert np.abs(result.boxes_xyxy - corrected[:, :4]).max() <= 1e-3


@pytest.mark.parametrize("seed", range(20))
def test_merging_equals_the_restatement_of_upstream_with_weights_that_move(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (120, 2))
    boxes = np.hstack([corners, corners + random.uniform(8, 60, (120, 2))])
    # Low scores, so that boxes are removed and the last ones take their places.
    scores = random.uniform([0.01, 0.05, 0.05], [0.3, 1, 1], (120, 3))
    rows = np.hstack([boxes, scores]).astype(np.float32)
    every, kept = soft_nms_like_upstream(rows, weight_exp=10, weights_move=True)
    assert kept < len(rows)
    result = soft_nms_merge(*one_class(rows), rows[:, 5:7])
    assert len(result.rows) == kept
    assert np.abs(result.scores - every[:kept, 4]).max() <= 1e-6
    assert np.abs(result.boxes_xyxy - every[:kept, :4]).max() <= 1e-3


def soft_nms_loop(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], top_k: int
) -> tuple[list[int], list[float]]:
    """Soft-NMS of one class as a plain loop; of tied rows the first is selected."""
    boxes, current = boxes.astype(np.float32), scores.astype(np.float32)
    original, rows, kept_scores = current.copy(), [], []
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    while len(rows) < top_k and current.max() > -np.inf:
        best = int(current.argmax())
        if not (current[best] < 0.001 and current[best] != original[best]):
            rows.append(best)
            kept_scores.append(float(current[best]))
            top_left = np.maximum(boxes[:, :2], boxes[best, :2])
            sides = np.maximum(np.minimum(boxes[:, 2:], boxes[best, 2:]) - top_left + 1, 0)
            intersections = sides.prod(axis=1)
            current *= np.exp(
                -((intersections / (areas + areas[best] - intersections)) ** 2) / np.float32(0.5)
            )
        current[best] = -np.inf
    return rows, kept_scores


# 8192 factors are computed at once: 54 rows of 150, 8 of 1000, and one of 9000.
@pytest.mark.parametrize(("count", "tied"), [(150, 150), (1000, 1000), (9000, 2), (9000, 9000)])
def test_tied_scores_are_selected_in_row_order(count: int, tied: int) -> None:
    random = np.random.default_rng(count)
    corners = random.integers(0, 400, (count, 2))
    boxes = np.hstack([corners, corners + random.integers(5, 60, (count, 2))])
    levels = np.repeat(random.uniform(0.1, 1, count // tied), tied)
    scores = random.permutation(levels).astype(np.float32)
    result = soft_nms(boxes, scores, np.zeros(count, np.int32), top_k=100)
    rows, expected_scores = soft_nms_loop(boxes, scores, 100)
    assert result.rows.tolist() == rows
    assert np.allclose(result.scores, expected_scores, atol=1e-6)


def test_merges_a_symmetric_image_at_five_scales() -> None:
    """Each pair occurs in the image and its flipped copy with the same score, at every scale."""
    count = 100
    random = np.random.default_rng(0)
    left, width = random.uniform(0, 20, (2, count))
    top, height = random.uniform(0, 20, (2, count))
    scores = random.uniform(0.1, 1, count).astype(np.float32)
    outputs = []
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5):
        side = round(200 * scale)
        for flipped in (False, True):
            # 128 cells per side; the image starts at the top left of the input.
            boxes = np.stack([left, top, left + width, top + height], axis=1)
            flipped_boxes = np.stack([128 - left - width, top, 128 - left, top + height], axis=1)
            outputs.append(
                ModelOutput(
                    {
                        "boxes": (flipped_boxes if flipped else boxes).astype(np.float32),
                        "scores": scores,
                        "class_ids": np.zeros(count, np.int32),
                        "corner_scores": np.repeat(scores[:, None], 2, axis=1),
                    },
                    ImageTransform(side, side, 511, 511, AffineTransform(1, 0, 0), scale, flipped),
                )
            )
    config = CornerPairsDecoder(output_stride=4, pairs=count, top_k=100, score_threshold=0.0)
    decoder = CornerPairs(config)
    detections = decoder.decode(outputs, DetectionOptions(0.0, 100, None, True, None))
    assert len(detections) == 100
    assert np.all(np.diff(detections.scores) <= 0)
    assert detections.scores[0] == scores.max()
