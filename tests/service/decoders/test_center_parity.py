"""*Objects as Points*: rows decoded upstream, through the decoders, against upstream's results.

Golden files are outputs of the reference implementation; *upstream* stands for it below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import make_manifest
from support.upstream_nms import assert_same_rows, soft_nms_like_upstream

from model_package import (
    CenterBoxes3DDecoder,
    CenterBoxesDecoder,
    CenterPosesDecoder,
    FreeSize,
    InputSpec,
)
from service.decoders import DECODERS, ModelOutput
from service.decoders.types import DetectionOptions, Detections, Detections3D, PoseDetections
from service.imaging.geometry import ImageTransform
from service.imaging.resize import InputPlanner
from service.imaging.types import InputOptions

Golden = dict[str, NDArray[Any]]
K = 100
COMMON = {"output_stride": 4, "top_k": K, "score_threshold": 0.0}
DEFAULT_CAMERA = (
    *(707.0493, 0.0, 604.0814, 45.75831),
    *(0.0, 707.0493, 180.5066, -0.3454157),
    *(0.0, 0.0, 1.0, 0.004981016),
)
CONFIGS = {
    "ctdet": CenterBoxesDecoder(**COMMON),
    "multi_pose": CenterPosesDecoder(**COMMON, keypoints=tuple(f"keypoint {i}" for i in range(17))),
    "ddd": CenterBoxes3DDecoder(**COMMON, projection=DEFAULT_CAMERA),
}


def task_of(name: str) -> str:
    return next(task for task in CONFIGS if name.startswith(task))


def load(directory: Path, name: str) -> Golden:
    with np.load(directory / f"upstream/goldens/{name}.npz") as golden:
        return {key: golden[key] for key in golden.files if "raw_" not in key}


def names(shared: Path) -> list[str]:
    stems = sorted(path.stem for path in (shared / "upstream/goldens").glob("*.npz"))
    return [name for name in stems if name.partition("_")[0] in ("ctdet", "multi", "ddd")]


def outputs_of(task: str, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return upstream's rows, in cells of the output map, as the graph's output tensors."""
    if task == "ddd":
        return {
            "centers": rows[:, :2],
            "scores": rows[:, 2],
            "rotations": rows[:, 3:11],
            "depths": rows[:, 11],
            "dimensions": rows[:, 12:15],
            "sizes": rows[:, 15:17],
            "class_ids": rows[:, 17].astype(np.int32),
        }
    outputs = {
        "centers": (rows[:, :2] + rows[:, 2:4]) / 2,
        "sizes": rows[:, 2:4] - rows[:, :2],
        "scores": rows[:, 4],
        "class_ids": rows[:, -1].astype(np.int32),
    }
    if task == "multi_pose":
        outputs["keypoints"] = rows[:, 5:39].reshape(-1, 17, 2)
        outputs["keypoint_scores"] = np.zeros((len(rows), 17), np.float32)
    return outputs


def transforms_of(name: str, golden: Golden) -> tuple[ImageTransform, ...]:
    """Return the planner's transforms; the input sizes must equal upstream's."""
    scales = tuple(
        float(golden[f"s{index}_scale"])
        for index in range(sum(key.endswith("_input_shape") for key in golden))
    )
    height_px, width_px = golden["s0_input_shape"][2:]
    keep = "keepres" in name
    free_size = FreeSize(
        multiple_px=128 if "hourglass" in name else 32, extra_px=1, max_side_px=2048
    )
    spec = InputSpec(
        width_px=int(width_px),
        height_px=int(height_px),
        resize="fit_width" if name.startswith("ddd") else "letterbox",
        free_size=None if name.startswith("ddd") else free_size,
    )
    image_height_px, image_width_px, _ = golden["image_shape"]
    transforms = InputPlanner(make_manifest(input_spec=spec), 50_000_000).plan_inputs(
        int(image_width_px), int(image_height_px), InputOptions(scales=scales, keep_resolution=keep)
    )
    for index, transform in enumerate(transforms):
        size = (transform.input_height_px, transform.input_width_px)
        assert size == tuple(golden[f"s{index}_input_shape"][2:])
    return transforms


def model_outputs(name: str, golden: Golden) -> list[ModelOutput]:
    return [
        ModelOutput(outputs_of(task_of(name), golden[f"s{index}_dets"][0]), transform)
        for index, transform in enumerate(transforms_of(name, golden))
    ]


def decode(name: str, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
    config = CONFIGS[task_of(name)]
    return DECODERS[config.kind](config).decode(outputs, options)


def as_rows(detections: Detections) -> NDArray[np.float64]:
    """Return detections in upstream's columns: box, score, keypoints if any, class id from 1."""
    columns: list[NDArray[Any]] = [detections.boxes_xyxy, detections.scores[:, None]]
    if isinstance(detections, PoseDetections):
        columns.append(detections.keypoints.reshape(len(detections), -1))
    return np.column_stack([*columns, detections.class_ids + 1])


def test_single_input_equals_upstream(shared: Path) -> None:
    compared = 0
    for name in names(shared):
        golden = load(shared, name)
        if name.startswith("ddd") or "nms" in name or "s1_dets" in golden:
            continue
        detections = decode(name, model_outputs(name, golden), DetectionOptions(0.0, K))
        assert_same_rows(as_rows(detections), golden["final"], 2e-4)
        compared += 1
    assert compared == 29


def soft_nms_results(
    rows: NDArray[np.float64], top_k: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return upstream's rows, with stale copies and ties for the last score, and corrected ones."""
    upstream, corrected = [], []
    for class_id in np.unique(rows[:, -1]):
        every, count = soft_nms_like_upstream(rows[rows[:, -1] == class_id].astype(np.float32))
        upstream.append(every)
        corrected.append(every[:count])
    both = [np.concatenate(parts) for parts in (upstream, corrected)]
    if top_k is None:
        return both[0], both[1]
    last = np.sort(both[0][:, 4])[-top_k] if len(both[0]) > top_k else -np.inf
    best = np.argsort(-both[1][:, 4], kind="stable")[:top_k]
    return both[0][both[0][:, 4] >= last], both[1][best]


def test_soft_nms_and_multi_scale_equal_upstream_except_for_stale_copies(shared: Path) -> None:
    compared = 0
    for name in names(shared):
        golden = load(shared, name)
        if "nms" in name or "s1_dets" in golden:
            assert_same_after_soft_nms(name, golden)
            compared += 1
    assert compared == 6


def test_poses_at_several_scales_equal_upstream_except_for_stale_copies(project: Path) -> None:
    golden = load(project / "tests", "unit_pose_scales")
    assert golden["final_kept"] == 26
    assert_same_after_soft_nms("multi_pose", golden)


def assert_same_after_soft_nms(name: str, golden: Golden) -> None:
    outputs = model_outputs(name, golden)
    # Stale copies depend on the order of the rows: upstream concatenates those of each test scale.
    candidates = np.concatenate(
        [as_rows(decode(name, [output], DetectionOptions(0.0, K))) for output in outputs]
    )
    top_k = None if name.startswith("multi_pose") else K
    upstream, corrected = soft_nms_results(candidates, top_k)
    # Stale copies of people have the box of one person and the keypoints of another.
    assert_same_rows(upstream[:, :5], golden["final"][:, :5], 2e-4)
    if top_k is None:
        assert_same_rows(corrected, golden["final"][: len(corrected)], 2e-4)
    else:
        assert_same_rows(upstream, golden["final"], 2e-4)
    detections = decode(name, outputs, DetectionOptions(0.0, K, soft_nms=True))
    assert np.all(np.diff(detections.scores) <= 0)
    assert_same_rows(as_rows(detections), corrected, 2e-4)


@pytest.mark.parametrize("case", ["default", "calib", "keepres"])
def test_3d_boxes_equal_upstream(case: str, shared: Path) -> None:
    name = f"ddd_dla_34_{case}_kitti"
    golden = load(shared, name)
    projection = golden["s0_calib"].astype(np.float64)
    if case != "calib":
        assert np.allclose(projection.reshape(-1), DEFAULT_CAMERA, rtol=1e-6)
    options = DetectionOptions(0.2, K, projection=projection if case == "calib" else None)
    (output,) = model_outputs(name, golden)
    detections = decode(name, [output], options)
    assert isinstance(detections, Detections3D)
    sizes = golden["s0_dets"][0][:, 15:17]
    assert_same_3d(detections, golden["final"], output.transform, golden["s0_dets"][0], sizes)


def assert_same_3d(
    detections: Detections3D,
    upstream: NDArray[np.float32],
    transform: ImageTransform,
    rows: NDArray[np.float32],
    sizes: NDArray[np.float32],
) -> None:
    """Compare with rows alpha, x1, y1, x2, y2, h, w, l, x, y, z, rotation_y, score, class.

    Upstream's 2D boxes are wrong: it applies the whole transform to the size as if it were a
    point. The same is done to the detections here, and nothing else.
    """
    upstream = upstream[np.lexsort((upstream[:, 12], upstream[:, 13]))]
    order = np.lexsort((detections.scores, detections.class_ids))
    assert np.array_equal(detections.class_ids[order] + 1, upstream[:, 13])
    assert np.array_equal(detections.scores[order], upstream[:, 12])
    assert np.abs(detections.alphas_rad[order] - upstream[:, 0]).max() <= 1e-5
    assert np.abs(detections.dimensions_hwl_m[order] - upstream[:, 5:8]).max() <= 1e-5
    assert np.abs(detections.locations_m[order] - upstream[:, 8:11]).max() <= 1e-4
    assert np.abs(detections.rotations_y_rad[order] - upstream[:, 11]).max() <= 1e-5
    centers = (detections.boxes_xyxy[order, :2] + detections.boxes_xyxy[order, 2:]) / 2
    row_indices = [
        int(np.flatnonzero(rows[:, 2] == score)[0]) for score in detections.scores[order]
    ]
    as_points = transform.to_image(sizes[row_indices].astype(np.float64) * 4)
    upstream_boxes = np.column_stack([centers - as_points / 2, centers + as_points / 2])
    assert np.abs(upstream_boxes - upstream[:, 1:5]).max() <= 1e-3
    correct_sizes = sizes[row_indices] * 4 * transform.image_px_per_input_px
    assert np.allclose(
        detections.boxes_xyxy[order, 2:] - detections.boxes_xyxy[order, :2],
        correct_sizes,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("case", "size", "excess_px"), [("kitti", (1242, 375), 1.2), ("land", (640, 402), 105.0)]
)
def test_3d_postprocessing_equals_upstream(
    case: str, size: tuple[int, int], excess_px: float, project: Path
) -> None:
    with np.load(project / "tests/upstream/goldens/unit_geometry_xz.npz") as golden:
        rows, upstream = golden[f"dddpp_{case}_in"][0], golden[f"dddpp_{case}_out"]
        projection = golden["ddd_calib"].astype(np.float64)
    spec = InputSpec(width_px=1280, height_px=384, resize="fit_width")
    (transform,) = InputPlanner(make_manifest(input_spec=spec), 50_000_000).plan_inputs(
        *size, InputOptions()
    )
    detections = DECODERS["center_boxes_3d"](CONFIGS["ddd"]).decode(
        [ModelOutput(outputs_of("ddd", rows), transform)],
        DetectionOptions(0.0, K, projection=projection),
    )
    assert isinstance(detections, Detections3D)
    assert len(detections) == len(upstream) == 64
    # Upstream's mistake in the height of the 2D boxes, as ADR 5 states it.
    heights = [
        np.sort(found[:, 3] - found[:, 1]) for found in (detections.boxes_xyxy, upstream[:, 1:5])
    ]
    assert np.abs(heights[1] - heights[0] - excess_px).max() <= 1e-3
    assert_same_3d(detections, upstream, transform, rows, rows[:, 15:17])
