"""Corner systems: the upstream decoded pairs through our joining, against their final boxes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.upstream_nms import suppress_like_upstream

from model_package import CornerPairsDecoder, CornerTripletsDecoder
from service.decoders import ModelOutput
from service.decoders.corner_pairs import CornerPairs, Pairs, concatenate, read_pairs
from service.decoders.corner_triplets import Centers, CornerTriplets, confirm
from service.decoders.types import DetectionOptions, Detections
from service.imaging.geometry import AffineTransform, ImageTransform

EVERYTHING = DetectionOptions(0.0, 100, soft_nms=True)
CASES = (
    "cornernet_hourglass104_default_land",
    "cornernet_hourglass104_multi_scale_cfg_odd",
    "triplet_centernet52_default_land",
    "triplet_centernet52_default_odd",
    "triplet_centernet104_default_land",
)
Golden = dict[str, NDArray[Any]]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Golden]:
    with np.load(shared / f"upstream/goldens/{request.param}.npz") as golden:
        return request.param, dict(golden)


def views_of(golden: Golden) -> list[ModelOutput]:
    return [
        view_of(golden, index, flipped)
        for index in range(sum(name.endswith("_dets") for name in golden))
        for flipped in (False, True)
    ]


def view_of(golden: Golden, index: int, flipped: bool) -> ModelOutput:
    rows = golden[f"s{index}_dets"][int(flipped)]
    outputs = {
        "scores": rows[:, 4],
        "class_ids": rows[:, 7].astype(np.int32),
        "boxes": rows[:, :4],
        "corner_scores": rows[:, 5:7],
    }
    if f"s{index}_center" in golden:
        centers = golden[f"s{index}_center"][int(flipped)]
        outputs["centers"] = centers[:, :2]
        outputs["center_class_ids"] = centers[:, 2].astype(np.int32)
        outputs["center_scores"] = centers[:, 3]
    height_px, width_px = golden[f"s{index}_input_shape"][2:]
    top, _, left, _ = golden[f"s{index}_borders"][0]
    resized_height_px, resized_width_px = golden[f"s{index}_sizes"][0]
    placed = ImageTransform(
        int(resized_width_px),
        int(resized_height_px),
        int(width_px),
        int(height_px),
        AffineTransform(1.0, float(left), float(top)),
        float(golden[f"s{index}_scale"]),
        flipped,
    )
    return ModelOutput(outputs, placed)


def decode(name: str, golden: Golden, options: DetectionOptions = EVERYTHING) -> Detections:
    decoder = (
        CornerTriplets(CornerTripletsDecoder(pairs=1000, top_k=100, score_threshold=0, centers=70))
        if name.startswith("triplet")
        else CornerPairs(CornerPairsDecoder(pairs=1000, top_k=100, score_threshold=0))
    )
    return decoder.decode(views_of(golden), options)


def assert_same(
    found: NDArray[np.floating], expected: NDArray[np.floating], tolerance_px: float
) -> None:
    """Same rows x1, y1, x2, y2, score, class in any order: each has its own partner."""
    assert len(found) == len(expected)
    distances = np.abs(found[:, None] - expected[None])
    fits = (distances[..., :4].max(axis=2) <= tolerance_px) & (distances[..., 4] <= 2e-6)
    fits &= distances[..., 5] == 0
    assert fits.any(axis=0).all()
    assert fits.any(axis=1).all()


def test_candidates_equal_upstream_before_suppression(case: tuple[str, Golden]) -> None:
    name, golden = case
    margin_px = 5.0 if name.startswith("triplet") else np.inf
    views = views_of(golden)
    for index in range(len(views) // 2):
        pairs = concatenate(
            [read_pairs(view, margin_px) for view in views[2 * index : 2 * index + 2]]
        )
        upstream = golden[f"s{index}_dets_rescaled"][0]
        upstream = upstream[upstream[:, 4] > -1]
        assert len(pairs.scores) == len(upstream)
        assert np.array_equal(pairs.scores, upstream[:, 4])
        assert np.array_equal(pairs.corner_scores, upstream[:, 5:7])
        in_resized = pairs.boxes_xyxy * views[2 * index].placement.test_scale
        assert np.abs(in_resized - upstream[:, :4]).max() <= 2e-4


def test_the_answer_is_as_upstream_but_for_their_mistakes(case: tuple[str, Golden]) -> None:
    name, golden = case
    before = golden["pre_nms"]
    several_scales = "multi_scale" in name
    upstream, meant = suppress_like_upstream(
        before[:, :7],
        before[:, 7].astype(np.int32),
        100,
        weight_exp=10 if several_scales else None,
    )
    # What we restated with their mistakes is what they return; without them it is ours.
    assert_same(upstream, golden["final"], 5e-4)
    found = decode(name, golden)
    assert np.all(np.diff(found.scores) <= 0)
    # They count classes from 1.
    assert_same(np.column_stack([found.boxes_xyxy, found.scores, found.class_ids + 1]), meant, 5e-4)


def test_stale_copies_are_all_that_upstream_have_more(shared: Path) -> None:
    with np.load(shared / "upstream/goldens/triplet_centernet52_default_odd.npz") as golden:
        found = decode("triplet", dict(golden))
        # They return as many boxes as they had before; 18 of those should have been gone.
        assert len(golden["final"]) == len(golden["pre_nms"]) == 74
    assert len(found) == 56


def test_asking_for_one_class_changes_nothing_about_it(shared: Path) -> None:
    with np.load(
        shared / "upstream/goldens/cornernet_hourglass104_multi_scale_cfg_odd.npz"
    ) as file:
        golden = dict(file)
    every = decode("cornernet", golden)
    class_id = int(every.class_ids[0])
    alone = decode("cornernet", golden, replace(EVERYTHING, class_ids=frozenset({class_id})))
    assert set(alone.class_ids.tolist()) == {class_id}
    of_class = every.class_ids == class_id
    assert np.array_equal(alone.boxes_xyxy[: of_class.sum()], every.boxes_xyxy[of_class])
    half = decode("cornernet", golden, replace(EVERYTHING, score_threshold=0.5))
    assert np.array_equal(half.scores, every.scores[every.scores >= 0.5])


def test_centers_decide_by_place_class_and_order() -> None:
    boxes = np.array([[0, 0, 90, 90], [0, 0, 200, 200], [0, 0, 90, 90], [300, 0, 390, 90]], float)
    pairs = Pairs(
        boxes,
        np.float32([0.6, 0.6, 0.6, 0.6]),
        np.int32([0, 0, 1, 0]),
        np.full((4, 2), 0.6, np.float32),
    )
    centers = Centers(
        np.array([[31.0, 59], [85, 100], [45, 45], [330, 45]]),
        np.float32([0.3, 0.9, 0.9, 0.9]),
        np.int32([0, 0, 0, 0]),
    )
    confirmed = confirm(pairs, centers)
    # The small box has its middle third at 30..60: the first center fits, though a later one is
    # better; the large one its middle fifth at 80..120. The third is of another class, and the
    # last center stands exactly on the border of the fourth's region.
    assert confirmed.boxes_xyxy[:, 2].tolist() == [90, 200]
    assert np.allclose(confirmed.scores, [(1.2 + 0.3) / 3, (1.2 + 0.9) / 3])


def test_nothing_found_is_an_answer() -> None:
    outputs = {
        "scores": np.full(10, -1, np.float32),
        "class_ids": np.zeros(10, np.int32),
        "boxes": np.zeros((10, 4), np.float32),
        "corner_scores": np.zeros((10, 2), np.float32),
        "centers": np.zeros((3, 2), np.float32),
        "center_scores": np.zeros(3, np.float32),
        "center_class_ids": np.zeros(3, np.int32),
    }
    placed = ImageTransform(100, 100, 127, 127, AffineTransform(1.0, 13, 13))
    decoder = CornerTriplets(
        CornerTripletsDecoder(pairs=10, top_k=5, score_threshold=0.1, centers=3)
    )
    found = decoder.decode([ModelOutput(outputs, placed)], EVERYTHING)
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
