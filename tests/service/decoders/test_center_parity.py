"""*Objects as Points*: the upstream decoded rows through our decoders, against their results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import make_manifest
from support.upstream_nms import soft_nms_like_upstream

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
from service.options import InputOptions

Golden = dict[str, NDArray[Any]]
K = 100
COMMON = {"output_stride": 4, "top_k": K, "score_threshold": 0.0}
DEFAULT_CAMERA = (
    *(707.0493, 0.0, 604.0814, 45.75831),
    *(0.0, 707.0493, 180.5066, -0.3454157),
    *(0.0, 0.0, 1.0, 0.004981016),
)
FACTS = {
    "ctdet": CenterBoxesDecoder(**COMMON),
    "multi_pose": CenterPosesDecoder(**COMMON, keypoints=tuple(f"keypoint {i}" for i in range(17))),
    "ddd": CenterBoxes3DDecoder(**COMMON, projection=DEFAULT_CAMERA),
}


def task_of(name: str) -> str:
    return next(task for task in FACTS if name.startswith(task))


def load(shared: Path, name: str) -> Golden:
    with np.load(shared / f"upstream/goldens/{name}.npz") as golden:
        return {key: golden[key] for key in golden.files if "raw_" not in key}


def names(shared: Path) -> list[str]:
    found = sorted(path.stem for path in (shared / "upstream/goldens").glob("*.npz"))
    return [name for name in found if name.partition("_")[0] in ("ctdet", "multi", "ddd")]


def outputs_of(task: str, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Their rows, in cells of the output map, as the graph's outputs."""
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


def placements_of(name: str, golden: Golden) -> tuple[ImageTransform, ...]:
    """Where our own planner puts the image; the upstream centers and scales must agree."""
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
    placements = InputPlanner(make_manifest(input_spec=spec), 50_000_000).place(
        int(image_width_px), int(image_height_px), InputOptions(scales=scales, keep_resolution=keep)
    )
    for index, placed in enumerate(placements):
        size = (placed.input_height_px, placed.input_width_px)
        assert size == tuple(golden[f"s{index}_input_shape"][2:])
    return placements


def decode(name: str, golden: Golden, options: DetectionOptions) -> Detections:
    task = task_of(name)
    views = [
        ModelOutput(outputs_of(task, golden[f"s{index}_dets"][0]), placed)
        for index, placed in enumerate(placements_of(name, golden))
    ]
    return DECODERS[FACTS[task].kind](FACTS[task]).decode(views, options)


def as_rows(found: Detections) -> NDArray[np.float64]:
    """Our detections in the upstream columns: box, score, keypoints if any, class from 1."""
    columns: list[NDArray[Any]] = [found.boxes_xyxy, found.scores[:, None]]
    if isinstance(found, PoseDetections):
        columns.append(found.keypoints.reshape(len(found), -1))
    return np.column_stack([*columns, found.class_ids + 1])


def assert_same(
    found: NDArray[np.floating], expected: NDArray[np.floating], tolerance: float
) -> None:
    """Same rows in any order: each has its own partner."""
    assert found.shape == expected.shape
    distances = np.abs(found[:, None] - expected[None])
    fits = (distances <= tolerance).all(axis=2) & (distances[..., 4] <= 1e-6)
    assert fits.any(axis=0).all(), distances.max(axis=2).min(axis=0).max()
    assert fits.any(axis=1).all()


def test_one_view_equals_upstream(shared: Path) -> None:
    compared = 0
    for name in names(shared):
        golden = load(shared, name)
        if name.startswith("ddd") or "nms" in name or "s1_dets" in golden:
            continue
        found = decode(name, golden, DetectionOptions(0.0, K))
        assert_same(as_rows(found), golden["final"], 2e-4)
        compared += 1
    assert compared == 29


def suppressed_like_upstream(
    rows: NDArray[np.float64], most: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What they return (stale copies, all that share the last score), and what was meant."""
    upstream, meant = [], []
    for class_id in np.unique(rows[:, -1]):
        every, count = soft_nms_like_upstream(rows[rows[:, -1] == class_id].astype(np.float32))
        upstream.append(every)
        meant.append(every[:count])
    both = [np.concatenate(parts) for parts in (upstream, meant)]
    if most is None:
        return both[0], both[1]
    last = np.sort(both[0][:, 4])[-most] if len(both[0]) > most else -np.inf
    best = np.argsort(-both[1][:, 4], kind="stable")[:most]
    return both[0][both[0][:, 4] >= last], both[1][best]


def test_soft_nms_and_several_scales_equal_upstream_but_for_stale_copies(shared: Path) -> None:
    compared = 0
    for name in names(shared):
        golden = load(shared, name)
        if "nms" not in name and "s1_dets" not in golden:
            continue
        everything = as_rows(decode(name, golden, DetectionOptions(0.0, 10 * K)))
        most = None if name.startswith("multi_pose") else K
        upstream, meant = suppressed_like_upstream(everything, most)
        # Their stale people have the box of one and the keypoints of another.
        assert_same(upstream[:, :5], golden["final"][:, :5], 2e-4)
        if most is None:
            assert_same(meant, golden["final"][: len(meant)], 2e-4)
        else:
            assert_same(upstream, golden["final"], 2e-4)
        found = decode(name, golden, DetectionOptions(0.0, K, soft_nms=True))
        assert np.all(np.diff(found.scores) <= 0)
        assert_same(as_rows(found), meant, 2e-4)
        compared += 1
    assert compared == 6


@pytest.mark.parametrize("case", ["default", "calib", "keepres"])
def test_3d_boxes_equal_upstream(case: str, shared: Path) -> None:
    name = f"ddd_dla_34_{case}_kitti"
    golden = load(shared, name)
    projection = golden["s0_calib"].astype(np.float64)
    if case != "calib":
        assert np.allclose(projection.reshape(-1), DEFAULT_CAMERA, rtol=1e-6)
    options = DetectionOptions(0.2, K, projection=projection if case == "calib" else None)
    found = decode(name, golden, options)
    assert isinstance(found, Detections3D)
    (placed,) = placements_of(name, golden)
    sizes = golden["s0_dets"][0][:, 15:17]
    assert_3d_like(found, golden["final"], placed, golden["s0_dets"][0], sizes)


def assert_3d_like(
    found: Detections3D,
    upstream: NDArray[np.float32],
    placed: ImageTransform,
    rows: NDArray[np.float32],
    sizes: NDArray[np.float32],
) -> None:
    """Compare with rows alpha, x1, y1, x2, y2, h, w, l, x, y, z, rotation_y, score, class.

    Their 2D boxes are wrong by design: they send the size through the whole transform, as if it
    were a point. Here that is done to ours, and nothing else.
    """
    order = np.lexsort((upstream[:, 12], upstream[:, 13]))
    upstream = upstream[order]
    local = np.lexsort((found.scores, found.class_ids))
    assert np.array_equal(found.class_ids[local] + 1, upstream[:, 13])
    assert np.array_equal(found.scores[local], upstream[:, 12])
    assert np.abs(found.alphas_rad[local] - upstream[:, 0]).max() <= 1e-5
    assert np.abs(found.dimensions_hwl_m[local] - upstream[:, 5:8]).max() <= 1e-5
    assert np.abs(found.locations_m[local] - upstream[:, 8:11]).max() <= 1e-4
    assert np.abs(found.rotations_y_rad[local] - upstream[:, 11]).max() <= 1e-5
    centers = (found.boxes_xyxy[local, :2] + found.boxes_xyxy[local, 2:]) / 2
    of_row = [int(np.flatnonzero(rows[:, 2] == score)[0]) for score in found.scores[local]]
    as_points = placed.to_image(sizes[of_row].astype(np.float64) * 4)
    their_boxes = np.column_stack([centers - as_points / 2, centers + as_points / 2])
    assert np.abs(their_boxes - upstream[:, 1:5]).max() <= 1e-3
    right = sizes[of_row] * 4 * placed.image_px_per_input_px
    assert np.allclose(found.boxes_xyxy[local, 2:] - found.boxes_xyxy[local, :2], right, atol=1e-3)


@pytest.mark.parametrize(("case", "size"), [("kitti", (1242, 375)), ("land", (640, 402))])
def test_3d_post_processing_equals_upstream(
    case: str, size: tuple[int, int], project: Path
) -> None:
    with np.load(project / "tests/upstream/goldens/unit_geometry_xz.npz") as golden:
        rows, upstream = golden[f"dddpp_{case}_in"][0], golden[f"dddpp_{case}_out"]
        projection = golden["ddd_calib"].astype(np.float64)
    spec = InputSpec(width_px=1280, height_px=384, resize="fit_width")
    (placed,) = InputPlanner(make_manifest(input_spec=spec), 50_000_000).place(
        *size, InputOptions()
    )
    found = DECODERS["center_boxes_3d"](FACTS["ddd"]).decode(
        [ModelOutput(outputs_of("ddd", rows), placed)],
        DetectionOptions(0.0, K, projection=projection),
    )
    assert isinstance(found, Detections3D)
    assert len(found) == len(upstream) == 64
    assert_3d_like(found, upstream, placed, rows, rows[:, 15:17])
