"""Parity with the upstream programs, from the encoded image to the final detections.

The images are the samples of this repository, so that nothing beside the checkout is needed. Every
network runs on each CPU backend in fp32; the weights are those of the rule in ``upstream``. The
quick networks cover boxes, poses, 3D boxes, corner pairs and triplets.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.exports import export_for_parity
from support.upstream_extreme_points import groups_of_golden
from support.upstream_nms import assert_same_rows, suppress_like_upstream
from upstream.weights_rule import make_state

from model_export.config import ExportConfig
from model_package import ModelPackage
from service.decoders.types import (
    Detections,
    Detections3D,
    ExtremePointDetections,
    PoseDetections,
)
from service.detector import load_detector

BACKENDS = ("onnxruntime-cpu", "openvino")
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "ctdet_res_18": {
        "default_blood_smear_1": {},
        "flip_blood_smear_1": {"flip": True},
        "keepres_blood_smear_1": {"keep_resolution": True},
    },
    "ctdet_resdcn_18": {"default_blood_smear_1": {}},
    "multi_pose_res_18": {"default_people_1": {}},
    "ddd_res_18": {"calib_road_0003": {"camera": True}},
    "cornernet_slim": {"default_people_1": {}},
    "cornernet_squeeze": {"default_people_1": {}, "flip_people_3": {"flip": True}},
    "triplet_slim": {"default_people_1": {}},
    "ctdet_dla_34": {
        "default_blood_smear_1": {},
        "default_blood_smear_1_nms": {"soft_nms": True},
    },
    "ctdet_hourglass": {"default_blood_smear_1": {}},
    "multi_pose_res_50": {"default_blood_smear_3": {}, "default_figures_1": {}},
    "multi_pose_dla_34": {
        "default_blood_smear_3": {},
        "flip_blood_smear_3": {"flip": True},
        "default_figures_1": {},
        "flip_figures_1": {"flip": True},
    },
    "ddd_dla_34": {
        "default_road_0001": {},
        "calib_road_0001": {"camera": True},
        "calib_road_0003": {"camera": True},
        "keepres_road_0003": {"keep_resolution": True},
        "keepres_figures_2": {"keep_resolution": True},
    },
    "exdet_dla_34": {"default_blood_smear_1": {"flip": True}},
    "triplet_centernet52": {"default_figures_1": {}},
    "cornernet_hourglass104": {"default_figures_1": {}},
}
INPUT_PX = {"multi_pose_res_18": (256, 256), "ddd_res_18": (640, 192)}
"""Width and height of the network's input where they are not those of the task."""
CORNER_INPUT_PX = 383
"""Side of the input of the corner models, for a sample of 256 pixels."""
QUICK = {
    "ctdet_res_18",
    "ctdet_resdcn_18",
    "multi_pose_res_18",
    "ddd_res_18",
    "cornernet_slim",
    "cornernet_squeeze",
    "triplet_slim",
}

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"),
    reason="takes minutes and up to 10 GB: set HEAVY_TESTS=1",
)

MATCHED = 0.99
"""Share of the detections of both sides that must match."""
SCORE_ERROR = 1e-4
PLACE_ERROR_PX = 0.05
"""Boxes and keypoints, in pixels of the image. A box of 3D detections is not compared, because of
an upstream mistake (ADR 5)."""
PX_PER_SCORE = 1000
"""Weight of scores in the matching: boxes that are clipped to the same one differ in them only."""
RELATIVE_ERROR_3D = 2e-3
"""Locations relative to the depth; dimensions in metres, angles in radians."""


def _parameters() -> list[object]:
    return [
        pytest.param(
            network,
            case,
            backend,
            marks=[] if network in QUICK else [heavy],
            id=f"{network}-{case}-{backend}",
        )
        for network, cases in CASES.items()
        for case in cases
        for backend in BACKENDS
    ]


@pytest.fixture(scope="module")
def package_of(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ModelPackage]:
    """Return a function that exports a network, with all variants that its cases need."""

    @lru_cache(maxsize=1)  # the cases of a network follow each other
    def export(network: str) -> ModelPackage:
        directory = tmp_path_factory.mktemp(network)
        shapes = json.loads((project / "tests/upstream/manifests" / f"{network}.json").read_text())
        state = make_state(shapes["state_dict"], network)
        checkpoint = directory / "model.pth"
        torch.save({key: torch.from_numpy(array) for key, array in state.items()}, checkpoint)
        package = export_for_parity(
            _config(network), checkpoint, directory / "package", one_size=_is_corner_model(network)
        )
        checkpoint.unlink()
        return package

    return export


def _config(network: str) -> ExportConfig:
    options = {option for case in CASES[network].values() for option in case}
    width_px, height_px = INPUT_PX.get(network, (None, None))
    max_side_px, normalization = None, "coco-demo"
    if _is_corner_model(network):
        width_px = height_px = max_side_px = CORNER_INPUT_PX
        normalization = None
    elif network.startswith("ddd"):  # keeps the resolution by cropping to its fixed input
        normalization = "imagenet"
    elif "keep_resolution" in options:
        max_side_px = 1536
    return ExportConfig(
        name="parity",
        version="1",
        architecture=network if _is_corner_model(network) else None,
        width_px=width_px,
        height_px=height_px,
        max_side_px=max_side_px,
        # Other flipped copies are inputs of their own, without a second graph.
        flip="flip" in options and network.startswith(("ctdet", "multi_pose")),
        normalization=normalization,
    )


def _is_corner_model(network: str) -> bool:
    return network.startswith(("cornernet", "triplet"))


@pytest.mark.parametrize(("network", "case", "backend"), _parameters())
def test_detections_of_rendered_images_match_upstream(
    project: Path,
    package_of: Callable[[str], ModelPackage],
    network: str,
    case: str,
    backend: str,
) -> None:
    golden = _read_golden(project, f"{network}_{case}")
    # The samples `figures` were renamed after the goldens had been made.
    image = project / str(golden["image"]).replace("figures", "people")
    pixels = cv2.imread(str(image))
    assert pixels is not None
    assert f"{zlib.crc32(pixels.tobytes()):08x}" == str(golden["image_crc32"])
    options = dict(CASES[network][case])
    if options.pop("camera", False):
        options["projection"] = golden["s0_calib"].ravel().tolist()
    directory = package_of(network).directory
    with load_detector(directory, backend=backend, precision="fp32") as detector:
        found = detector.detect(
            image.read_bytes(), score_threshold=0.0, top_k=100, **options
        ).detections
    upstream = _final_rows(project, f"{network}_{case}", golden)
    worst = _compare_3d(found, upstream) if isinstance(found, Detections3D) else _compare(
        found, upstream
    )  # fmt: skip
    if isinstance(found, ExtremePointDetections):
        worst += f" | extreme points {_compare_extreme_points(found, golden):.1e} px"
    print(f"\nparity | {network} | {case} | {backend} | {worst}")


def _read_golden(project: Path, name: str) -> dict[str, NDArray[Any]]:
    with np.load(project / "tests/upstream/goldens_rendered" / f"{name}.npz") as file:
        return dict(file)


def _final_rows(
    project: Path, name: str, golden: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Return the results of the upstream program, without the stale copies of its soft-NMS (ADR 5).

    A restatement of that soft-NMS, which must reproduce the golden, tells which rows are copies.
    """
    if name.startswith("ddd"):
        return golden["final_peak0"].astype(np.float64)
    before = golden.get("pre_nms")
    if name.endswith("_nms"):
        before = _read_golden(project, name.removesuffix("_nms"))["final"]
    if name.startswith("exdet"):
        before, _ = groups_of_golden(golden)
    if before is None:
        return golden["final"].astype(np.float64)
    every, survivors = suppress_like_upstream(
        before[:, :-1], before[:, -1].astype(np.int32), 100, weight_exp=None
    )
    assert_same_rows(every, golden["final"], 5e-4, 2e-6)
    return survivors.astype(np.float64)


def _compare_extreme_points(
    found: ExtremePointDetections, golden: Mapping[str, NDArray[Any]]
) -> float:
    """Compare the points of each detection with the nearest group upstream; return the error."""
    rows, points = groups_of_golden(golden)
    distances = np.abs(found.points[:, np.newaxis] - points).max(axis=(2, 3))
    distances[found.class_ids[:, np.newaxis] != rows[:, 5] - 1] = np.inf
    error = float(distances.min(axis=1).max())
    assert error <= PLACE_ERROR_PX
    return error


def _compare(found: Detections, upstream: NDArray[np.float64]) -> str:
    """Compare boxes and keypoints with rows of box, score, keypoints and class."""
    keypoints = np.empty((len(found), 0))
    if isinstance(found, PoseDetections):
        keypoints = found.keypoints.reshape(len(found), -1)
    local = np.hstack((found.boxes_xyxy, keypoints))
    other = np.hstack((upstream[:, :4], upstream[:, 5:-1]))
    classes = upstream[:, -1] - 1
    places = np.column_stack((found.boxes_xyxy, found.scores * PX_PER_SCORE))
    other_places = np.column_stack((upstream[:, :4], upstream[:, 4] * PX_PER_SCORE))
    rows, others = _match(places, found.class_ids, other_places, classes, 8.0)
    assert len(rows) >= MATCHED * max(len(found), len(upstream))
    score = np.abs(found.scores[rows] - upstream[others, 4]).max()
    errors = np.abs(local[rows] - other[others])
    box, moved = errors[:, :4].max(), errors[:, 4:] > PLACE_ERROR_PX
    assert score <= SCORE_ERROR
    assert box <= PLACE_ERROR_PX
    # Rounding may move a keypoint across a threshold of the upstream rule.
    assert moved.mean() <= 0.005 if moved.size else True
    keypoint = errors[:, 4:][~moved].max(initial=0.0)
    return (
        f"score {score:.1e} | box {box:.1e} px | keypoint {keypoint:.1e} px, {moved.sum()} moved | "
        f"matched {len(rows)} of {len(upstream)}"
    )


def _compare_3d(found: Detections3D, upstream: NDArray[np.float64]) -> str:
    """Compare with rows of alpha, box, h, w, l, x, y, z, rotation_y, score and class."""
    rows, others = _match(
        found.locations_m, found.class_ids, upstream[:, 8:11], upstream[:, 13] - 1, 0.1
    )
    assert len(rows) >= MATCHED * max(len(found), len(upstream))
    score = np.abs(found.scores[rows] - upstream[others, 12]).max()
    depths = np.maximum(1, np.abs(upstream[others, 10]))
    distance = np.abs(found.locations_m[rows] - upstream[others, 8:11]).max(axis=1)
    location = (distance / depths).max()
    dimensions = np.abs(found.dimensions_hwl_m[rows] - upstream[others, 5:8]).max()
    turns = found.rotations_y_rad[rows] - upstream[others, 11]
    angle = np.abs((turns + np.pi) % (2 * np.pi) - np.pi).max()
    assert score <= SCORE_ERROR
    assert max(location, dimensions, angle) <= RELATIVE_ERROR_3D
    return (
        f"score {score:.1e} | location {location:.1e} of the depth | dimensions {dimensions:.1e} m "
        f"| angle {angle:.1e} | matched {len(rows)} of {len(upstream)}"
    )


def _match(
    places: NDArray[Any],
    class_ids: NDArray[Any],
    others: NDArray[Any],
    other_ids: NDArray[Any],
    radius: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match rows of the same class with the nearest place; each row at most once."""
    distances = np.abs(places[:, np.newaxis] - others).max(axis=2)
    distances[class_ids[:, np.newaxis] != other_ids] = np.inf
    nearest = distances.argmin(axis=1)
    rows = np.flatnonzero(distances[np.arange(len(places)), nearest] < radius)
    assert len(set(nearest[rows].tolist())) == len(rows), "two rows have the same nearest one"
    return rows, nearest[rows]
