"""Soft-NMS against the upstream arrays (``unit_softnms.npz``)."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.upstream_nms import soft_nms_like_upstream

from model_package import CornerPairsDecoder
from service.decoders.corner_pairs import CornerPairs
from service.decoders.model_output import ModelOutput
from service.decoders.soft_nms import Decay, gaussian, linear, soft_nms, soft_nms_merge
from service.decoders.types import DetectionOptions
from service.imaging.geometry import AffineTransform, ImageTransform


@pytest.fixture(scope="module")
def golden(project: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(project / "tests/upstream/goldens/unit_softnms.npz") as file:
        return dict(file)


def one_class(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    return rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int32)


VARIANTS: dict[str, tuple[Decay, float]] = {
    "gauss": (gaussian(), 0.001),
    "linear": (linear(), 0.001),
    "gauss_t01": (gaussian(), 0.1),
    "gauss_sig02": (gaussian(0.2), 0.001),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [1, 2, 5, 30, 120])
def test_survivors_equal_upstream(
    golden: dict[str, NDArray[np.float32]], count: int, variant: str
) -> None:
    decay, forget_below = VARIANTS[variant]
    left = soft_nms(*one_class(golden[f"b{count}"]), decay=decay, forget_below=forget_below)
    # Theirs keeps stale copies behind the survivors; ours ends there.
    survivors = golden[f"b{count}_{variant}"][: int(golden[f"b{count}_{variant}_nkeep"])]
    assert len(left.rows) == len(survivors)
    assert np.abs(left.boxes_xyxy - survivors[:, :4]).max() <= 1e-4
    assert np.abs(left.scores - survivors[:, 4]).max() <= 1e-6
    assert np.abs(golden[f"b{count}"][left.rows, :4] - survivors[:, :4]).max() == 0


def test_the_columns_of_poses_follow_their_boxes(golden: dict[str, NDArray[np.float32]]) -> None:
    left = soft_nms(*one_class(golden["p120"]))
    survivors = golden["p120_gauss"][: int(golden["p120_nkeep"])]
    assert np.array_equal(golden["p120"][left.rows, 5:], survivors[:, 5:])


def test_nothing_in_nothing_out() -> None:
    left = soft_nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32))
    assert left.boxes_xyxy.shape == (0, 4)
    assert len(left.rows) == len(left.scores) == 0


def test_classes_do_not_touch_each_other_and_top_k_is_a_prefix(
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


def test_boxes_without_an_area_touch_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [8, 8, 2, 2], [5, 5, 4, 4], [0, 0, 10, 10]])
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    left = soft_nms(boxes, scores, np.zeros(4, np.int32))
    assert np.allclose(left.scores, [0.9, 0.8, 0.7, 0.6 * np.exp(-2)])


@pytest.mark.parametrize("count", [1, 2, 5, 30, 120])
def test_merging_equals_upstream_but_for_the_weights(
    golden: dict[str, NDArray[np.float32]], count: int
) -> None:
    rows, upstream = golden[f"m{count}"], golden[f"m{count}_merge10"]
    kept = int(golden[f"m{count}_nkeep"])
    # What we restated is what they run, so the same with moving weights is what they meant.
    restated, _ = soft_nms_like_upstream(rows, weight_exp=10)
    assert np.allclose(restated, upstream, atol=1e-3)
    every, _ = soft_nms_like_upstream(rows, weight_exp=10, weights_move=True)
    meant = every[:kept]
    left = soft_nms_merge(*one_class(rows), rows[:, 5:7])
    assert len(left.rows) == kept
    assert np.abs(left.scores - meant[:, 4]).max() <= 1e-6
    assert np.abs(left.boxes_xyxy - meant[:, :4]).max() <= 1e-3


def in_plain_words(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], most: int
) -> tuple[list[int], list[float]]:
    """Soft-NMS of one class, one row after the other; the first of tied rows is selected."""
    boxes, lowered = boxes.astype(np.float32), scores.astype(np.float32)
    given, rows, kept = lowered.copy(), [], []
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    while len(rows) < most and lowered.max() > -np.inf:
        best = int(lowered.argmax())
        if not (lowered[best] < 0.001 and lowered[best] != given[best]):
            rows.append(best)
            kept.append(float(lowered[best]))
            low = np.maximum(boxes[:, :2], boxes[best, :2])
            sides = np.maximum(np.minimum(boxes[:, 2:], boxes[best, 2:]) - low + 1, 0)
            shared = sides.prod(axis=1)
            lowered *= np.exp(-((shared / (areas + areas[best] - shared)) ** 2) / np.float32(0.5))
        lowered[best] = -np.inf
    return rows, kept


# 8192 numbers are worked out at once: 54 rows of 150, 8 of 1000, and one of 9000.
@pytest.mark.parametrize(("count", "tied"), [(150, 150), (1000, 1000), (9000, 2), (9000, 9000)])
def test_tied_scores_are_selected_in_the_order_of_the_rows(count: int, tied: int) -> None:
    random = np.random.default_rng(count)
    corners = random.integers(0, 400, (count, 2))
    boxes = np.hstack([corners, corners + random.integers(5, 60, (count, 2))])
    levels = np.repeat(random.uniform(0.1, 1, count // tied), tied)
    scores = random.permutation(levels).astype(np.float32)
    left = soft_nms(boxes, scores, np.zeros(count, np.int32), top_k=100)
    rows, lowered = in_plain_words(boxes, scores, 100)
    assert left.rows.tolist() == rows
    assert np.allclose(left.scores, lowered, atol=1e-6)


def test_a_image_that_is_its_own_flip_image_at_five_scales() -> None:
    """Each pair is found twice with the same score, here at each scale."""
    count = 100
    random = np.random.default_rng(0)
    left, width = random.uniform(0, 20, (2, count))
    top, height = random.uniform(0, 20, (2, count))
    scores = random.uniform(0.1, 1, count).astype(np.float32)
    views = []
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5):
        side = round(200 * scale)
        for flipped in (False, True):
            # 128 cells of the input, which the image fills from the corner on.
            first = np.stack([left, top, left + width, top + height], axis=1)
            turned = np.stack([128 - left - width, top, 128 - left, top + height], axis=1)
            views.append(
                ModelOutput(
                    {
                        "boxes": (turned if flipped else first).astype(np.float32),
                        "scores": scores,
                        "class_ids": np.zeros(count, np.int32),
                        "corner_scores": np.repeat(scores[:, None], 2, axis=1),
                    },
                    ImageTransform(side, side, 511, 511, AffineTransform(1, 0, 0), scale, flipped),
                )
            )
    decoder = CornerPairs(CornerPairsDecoder(pairs=count, top_k=100, score_threshold=0.0))
    found = decoder.decode(views, DetectionOptions(0.0, 100, None, True, None))
    assert len(found) == 100
    assert np.all(np.diff(found.scores) <= 0)
    assert found.scores[0] == scores.max()
