"""Corner models: pairs decoded upstream, through the decoders, against upstream's boxes.

Golden files are outputs of the reference implementation; *upstream* stands for it below.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tasks import CENTER_ROWS, PAIR_ROWS
from support.upstream_nms import assert_same_rows, suppress_like_upstream

from model_package import CornerPairsDecoder, CornerTripletsDecoder
from service.decoders.corner_pairs import CandidateBoxes, CornerPairs, decode_candidates
from service.decoders.corner_triplets import CenterKeypoints, CornerTriplets, filter_by_centers
from service.decoders.types import DetectionOptions, Detections, ModelOutput
from service.imaging.geometry import AffineTransform, ImageTransform

ALL_DETECTIONS = DetectionOptions(0.0, 100, soft_nms=True)
CASES = (
    "cornernet_hourglass104_default_land",
    "cornernet_hourglass104_multi_scale_cfg_odd",
    "triplet_centernet52_default_land",
    "triplet_centernet52_default_odd",
    "triplet_centernet104_default_land",
)
STRIDE = 4
SCORE_TOLERANCE = 2e-6
Golden = dict[str, NDArray[Any]]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Golden]:
    with np.load(shared / f"upstream/goldens/{request.param}.npz") as golden:
        return request.param, dict(golden)


def outputs_of(golden: Golden) -> list[ModelOutput]:
    return [
        output_of(golden, index, flipped)
        for index in range(sum(name.endswith("_dets") for name in golden))
        for flipped in (False, True)
    ]


def output_of(golden: Golden, index: int, flipped: bool) -> ModelOutput:
    rows = golden[f"s{index}_dets"][int(flipped)]
    tensors = {
        "scores": rows[:, 4],
        "class_ids": rows[:, 7].astype(np.int32),
        "boxes": rows[:, :4],
        "corner_scores": rows[:, 5:7],
    }
    if f"s{index}_center" in golden:
        centers = golden[f"s{index}_center"][int(flipped)]
        tensors["centers"] = centers[:, :2]
        tensors["center_class_ids"] = centers[:, 2].astype(np.int32)
        tensors["center_scores"] = centers[:, 3]
    height_px, width_px = golden[f"s{index}_input_shape"][2:]
    top, _, left, _ = golden[f"s{index}_borders"][0]
    resized_height_px, resized_width_px = golden[f"s{index}_sizes"][0]
    transform = ImageTransform(
        int(resized_width_px),
        int(resized_height_px),
        int(width_px),
        int(height_px),
        AffineTransform(1.0, float(left), float(top)),
        float(golden[f"s{index}_scale"]),
        flipped,
    )
    return ModelOutput(tensors, transform)


def decode(name: str, golden: Golden, options: DetectionOptions = ALL_DETECTIONS) -> Detections:
    fields = {"output_stride": STRIDE, "pairs": 1000, "top_k": 100, "score_threshold": 0}
    decoder = (
        CornerTriplets(CornerTripletsDecoder(**fields, centers=70))
        if name.startswith("triplet")
        else CornerPairs(CornerPairsDecoder(**fields))
    )
    return decoder.decode(outputs_of(golden), options)


def test_candidates_equal_upstream_before_soft_nms(case: tuple[str, Golden]) -> None:
    name, golden = case
    margin_px = 5.0 if name.startswith("triplet") else np.inf
    outputs = outputs_of(golden)
    for index in range(len(outputs) // 2):
        image_and_flipped = outputs[2 * index : 2 * index + 2]
        candidates = CandidateBoxes.concatenate(
            [decode_candidates(output, STRIDE, margin_px) for output in image_and_flipped]
        )
        upstream = golden[f"s{index}_dets_rescaled"][0]
        upstream = upstream[upstream[:, 4] > -1]
        assert len(candidates.scores) == len(upstream)
        assert np.array_equal(candidates.scores, upstream[:, 4])
        assert np.array_equal(candidates.corner_scores, upstream[:, 5:7])
        in_resized = candidates.boxes_xyxy * outputs[2 * index].transform.test_scale
        assert np.abs(in_resized - upstream[:, :4]).max() <= 2e-4


def test_detections_equal_upstream_except_for_its_mistakes(case: tuple[str, Golden]) -> None:
    name, golden = case
    before = golden["pre_nms"]
    multi_scale = "multi_scale" in name
    upstream, corrected = suppress_like_upstream(
        before[:, :7],
        before[:, 7].astype(np.int32),
        100,
        weight_exp=10 if multi_scale else None,
    )
    # The restatement with its mistakes equals upstream; without them it equals the decoder.
    assert_same_rows(upstream, golden["final"], 5e-4, SCORE_TOLERANCE)
    detections = decode(name, golden)
    assert np.all(np.diff(detections.scores) <= 0)
    # Upstream counts class ids from 1.
    assert_same_rows(
        np.column_stack([detections.boxes_xyxy, detections.scores, detections.class_ids + 1]),
        corrected,
        5e-4,
        SCORE_TOLERANCE,
    )


def test_upstream_returns_more_boxes_only_by_stale_copies(shared: Path) -> None:
    with np.load(shared / "upstream/goldens/triplet_centernet52_default_odd.npz") as golden:
        detections = decode("triplet", dict(golden))
        # Upstream returns as many boxes as before soft-NMS; 18 of them should have been dropped.
        assert len(golden["final"]) == len(golden["pre_nms"]) == 74
    assert len(detections) == 56


def test_class_filter_does_not_change_the_boxes_of_the_class(shared: Path) -> None:
    with np.load(
        shared / "upstream/goldens/cornernet_hourglass104_multi_scale_cfg_odd.npz"
    ) as file:
        golden = dict(file)
    every = decode("cornernet", golden)
    class_id = int(every.class_ids[0])
    alone = decode("cornernet", golden, replace(ALL_DETECTIONS, class_ids=frozenset({class_id})))
    assert set(alone.class_ids.tolist()) == {class_id}
    of_class = every.class_ids == class_id
    assert np.array_equal(alone.boxes_xyxy[: of_class.sum()], every.boxes_xyxy[of_class])
    half = decode("cornernet", golden, replace(ALL_DETECTIONS, score_threshold=0.5))
    assert np.array_equal(half.scores, every.scores[every.scores >= 0.5])


def test_centers_match_by_position_class_and_order() -> None:
    boxes = np.array([[0, 0, 90, 90], [0, 0, 200, 200], [0, 0, 90, 90], [300, 0, 390, 90]], float)
    candidates = CandidateBoxes(
        boxes,
        np.float32([0.6, 0.6, 0.6, 0.6]),
        np.int32([0, 0, 1, 0]),
        np.full((4, 2), 0.6, np.float32),
    )
    centers = CenterKeypoints(
        np.array([[31.0, 59], [85, 100], [45, 45], [330, 45]]),
        np.float32([0.3, 0.9, 0.9, 0.9]),
        np.int32([0, 0, 0, 0]),
    )
    triplets = filter_by_centers(candidates, centers)
    # The central region of the small box is its middle third, 30..60: the first center matches,
    # although a later one has a higher score. That of the large box is its middle fifth, 80..120.
    # The third box is of another class. The last center is exactly on the border of the fourth
    # box's region.
    assert triplets.boxes_xyxy[:, 2].tolist() == [90, 200]
    assert np.allclose(triplets.scores, [(1.2 + 0.3) / 3, (1.2 + 0.9) / 3])


def test_returns_empty_detections_without_valid_pairs() -> None:
    tensors = {
        "scores": np.full(10, -1, np.float32),
        "class_ids": np.zeros(10, np.int32),
        "boxes": np.zeros((10, 4), np.float32),
        "corner_scores": np.zeros((10, 2), np.float32),
        "centers": np.zeros((3, 2), np.float32),
        "center_scores": np.zeros(3, np.float32),
        "center_class_ids": np.zeros(3, np.int32),
    }
    transform = ImageTransform(100, 100, 127, 127, AffineTransform(1.0, 13, 13))
    config = CornerTripletsDecoder(
        output_stride=STRIDE, pairs=10, top_k=5, score_threshold=0.1, centers=3
    )
    decoder = CornerTriplets(config)
    detections = decoder.decode([ModelOutput(tensors, transform)], ALL_DETECTIONS)
    assert len(detections) == 0
    assert detections.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("stride", [4, 8])
def test_corners_and_centers_are_cells_of_the_output_stride(stride: int) -> None:
    tensors = {name: rows.copy() for name, rows in (PAIR_ROWS | CENTER_ROWS).items()}
    for name in ("boxes", "centers"):
        tensors[name] *= 4 / stride
    config = CornerTripletsDecoder(
        output_stride=stride, pairs=3, top_k=5, score_threshold=0.1, centers=2
    )
    output = ModelOutput(tensors, ImageTransform(64, 64, 127, 127, AffineTransform(1.0, 31, 31)))
    found = CornerTriplets(config).decode([output], ALL_DETECTIONS)
    expected = np.array([10, 10, 20, 22]) * (127 / 32) - 31
    assert found.boxes_xyxy == pytest.approx(expected[np.newaxis], abs=1e-4)
