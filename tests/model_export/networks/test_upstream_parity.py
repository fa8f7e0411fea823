"""Comparison with upstream detections, from the upstream canvas and weights, in every runtime.

Needs the end-to-end goldens that are too large for the repository; see the fixture ``shared``.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import State, without_counters
from support.openvino import openvino_runner
from support.upstream import (
    Column,
    Golden,
    Rows,
    allowed_errors,
    box_3d_columns,
    box_columns,
    match_rows,
    pose_columns,
    read_goldens,
    to_rows,
)

from labels.outputs import Outputs
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.class_names import COCO_KEYPOINTS, flipped_pairs
from model_export.detection_graph import DetectionGraph
from model_export.graph.normalization import NORMALIZATIONS, PixelNormalization
from model_export.onnx.export import export_onnx
from model_export.tasks import TASKS
from model_export.verification.onnx_vs_torch import onnx_runner, torch_runner
from model_package import FreeSize

Run = Callable[[np.ndarray], list[Outputs]]

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"),
    reason="takes minutes and up to 10 GB: set HEAVY_TESTS=1",
)

OUTPUTS = {
    "boxes": ("scores", "class_ids", "centers", "sizes"),
    "poses": ("scores", "class_ids", "centers", "sizes", "keypoints", "keypoint_scores"),
    "boxes_3d": (
        "scores", "class_ids", "centers", "sizes", "depths", "dimensions", "rotations",
    ),
}  # fmt: skip
COLUMNS = {"boxes": box_columns, "poses": pose_columns, "boxes_3d": box_3d_columns}
CENTERS = {"boxes": slice(0, 4), "poses": slice(0, 4), "boxes_3d": slice(0, 2)}
SCORES = {"boxes": 4, "poses": 4, "boxes_3d": 2}

FREE_SIZE = FreeSize(multiple_px=32, extra_px=1, max_side_px=1536)

MAX_REASSIGNED = 0.005
"""Share of keypoints that rounding may move across a threshold of the upstream rule."""

CASES = {  # network: cases; the cases of a network run in sequence, so that it is exported once
    "ctdet_res_18": [
        "default_land", "default_port", "input384x640_land", "keepres_land", "keepres_odd",
        "ms_nms_odd", "flip_land", "keepres_flip_port", "default_land_evalmean",
    ],
    "ctdet_resdcn_18": [
        "default_land", "default_odd", "input384x640_land", "keepres_land", "flip_land",
        "keepres_flip_port", "default_land_evalmean",
    ],
    "ctdet_res_50": ["default_land"],
    "ctdet_res_101": ["default_land"],
    "ctdet_dla_34": [
        "default_land", "default_port", "keepres_land", "flip_land", "ms_keepres_flip_odd",
        "default_land_evalmean",
    ],
    "ctdet_hourglass": ["default_land", "flip_land"],
    "multi_pose_res_50": ["default_land"],
    "multi_pose_dla_34": ["default_land", "keepres_port", "flip_land"],
    "multi_pose_hourglass": ["default_land"],
    "ddd_dla_34": ["default_kitti", "calib_kitti", "keepres_kitti"],
}  # fmt: skip

# All other cases take minutes.
QUICK_CASES = {
    "PyTorch": {
        ("ctdet_res_18", None),
        ("ctdet_resdcn_18", None),
        ("multi_pose_res_50", None),
        ("ddd_dla_34", "default_kitti"),
    },
    "ONNX Runtime": {
        ("ctdet_res_18", "default_land"),
        ("ctdet_res_18", "keepres_land"),
        ("ctdet_res_18", "keepres_odd"),
        ("ctdet_res_18", "flip_land"),
        ("ctdet_res_18", "keepres_flip_port"),
        ("ctdet_resdcn_18", "default_land"),
        ("ctdet_resdcn_18", "keepres_land"),
    },
    "OpenVINO": {
        ("ctdet_res_18", "default_land"),
        ("ctdet_resdcn_18", "default_land"),
    },
}


def _parameters() -> list[object]:
    return [
        pytest.param(
            network,
            case,
            runtime,
            marks=[] if quick & {(network, case), (network, None)} else [heavy],
            id=f"{network}-{case}-{runtime}",
        )
        for runtime, quick in QUICK_CASES.items()
        for network, cases in CASES.items()
        for case in cases
    ]


@pytest.fixture(scope="module")
def graph_of(
    upstream_state: Callable[[str], State],
) -> Callable[[str, str, bool], DetectionGraph]:
    @lru_cache(maxsize=1)  # an hourglass takes 800 MB
    def make(network: str, normalization: str, flip: bool) -> DetectionGraph:
        state = without_counters(upstream_state(network))
        checkpoint_info = identify(state)
        graph = DetectionGraph(
            load_network(checkpoint_info, state),
            NORMALIZATIONS[normalization],
            100,
            TASKS[checkpoint_info.task],
            flip,
            flipped_pairs(COCO_KEYPOINTS) if checkpoint_info.task == "poses" else (),
        )
        return graph.eval()

    return make


@pytest.fixture(scope="module")
def runner_of(
    graph_of: Callable[[str, str, bool], DetectionGraph],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str, bool, str], Run]:
    """Run in PyTorch, or in ONNX Runtime or OpenVINO, normally with dynamic height and width."""

    @lru_cache(maxsize=1)
    def make(network: str, normalization: str, flip: bool, runtime: str) -> Run:
        graph = graph_of(network, normalization, flip)
        names = OUTPUTS[_task(network)]
        if runtime == "PyTorch":
            return torch_runner(graph, names)
        path = tmp_path_factory.mktemp("parity") / "model.onnx"
        if "hourglass" in network:  # all cases are of one size; a dynamic one takes twice as long
            export_onnx(graph, 512, 512, names, path)
        else:
            export_onnx(graph, 256, 384, names, path, FREE_SIZE)
        try:
            if runtime == "OpenVINO":
                return openvino_runner(path, names, FREE_SIZE.max_side_px)
            return onnx_runner(path, names)
        finally:
            path.unlink()

    return make


def _task(network: str) -> str:
    return {"ctdet": "boxes", "multi_pose": "poses", "ddd": "boxes_3d"}[
        next(prefix for prefix in ("ctdet", "multi_pose", "ddd") if network.startswith(prefix))
    ]


def _normalization(network: str, case: str) -> str:
    """Return the normalization of the upstream program that made the golden."""
    if network.startswith("ddd"):
        return "imagenet"
    return "coco" if case.endswith("evalmean") else "coco-demo"


@pytest.mark.parametrize(("network", "case", "runtime"), _parameters())
def test_detections_match_upstream(
    shared: Path,
    runner_of: Callable[[str, str, bool, str], Run],
    network: str,
    case: str,
    runtime: str,
) -> None:
    upstream, task = shared / "upstream", _task(network)
    run = runner_of(network, _normalization(network, case), "flip" in case, runtime)
    for golden in read_goldens(upstream / "goldens", f"{network}_{case}"):
        local = to_rows(run(golden.canvas[np.newaxis])[0])
        errors = allowed_errors(upstream / "manifests", network, case, golden.spreads)
        columns = COLUMNS[task](golden.rows, errors)
        worst = _compare(local, golden.rows, task, columns)
        height_px, width_px = golden.canvas.shape[:2]
        print(f"\nparity | {network} | {case} {width_px}x{height_px} | {runtime} | {worst}")


def _compare(local: Rows, upstream: Rows, task: str, columns: list[Column]) -> str:
    """Check matched rows column by column, and that unmatched rows are ties at the top-K limit."""
    rows, others = match_rows(local, upstream, CENTERS[task])
    report = []
    for column in columns:
        errors = np.abs(local[rows, column.columns] - upstream[others, column.columns])
        excess = errors > column.tolerances[others]
        if column.name == "keypoint":
            moved = excess.reshape(len(rows), -1, 2).any(axis=2)
            assert moved.mean() <= MAX_REASSIGNED, f"{moved.sum()} keypoints differ"
            errors[excess] = 0.0
            report.append(f"keypoints reassigned {moved.sum()} of {moved.size}")
        else:
            assert not excess.any(), f"{column.name} differs by {errors.max():.2g}"
        report.append(f"{column.name} {errors.max():.1e}")
    score = SCORES[task]
    score_tolerance = max(c.tolerances.max() for c in columns if c.name == "score")
    cut = upstream[:, score].min() + score_tolerance
    for found, matched in ((local, rows), (upstream, others)):
        assert (np.delete(found[:, score], matched) <= cut).all()  # ties at the top-K limit
    return f"{' | '.join(report)} | matched {len(rows)} of {len(upstream)}"


@pytest.mark.parametrize(
    ("network", "case"),
    [
        ("ctdet_res_18", "default_land"),
        ("ctdet_res_18", "default_land_evalmean"),
        ("ctdet_res_18", "keepres_odd"),
        ("ddd_dla_34", "default_kitti"),
    ],
)
def test_network_input_matches_upstream(shared: Path, network: str, case: str) -> None:
    golden: Golden
    (golden,) = read_goldens(shared / "upstream" / "goldens", f"{network}_{case}")
    normalize = PixelNormalization(NORMALIZATIONS[_normalization(network, case)])
    pixels = normalize(torch.from_numpy(golden.canvas[np.newaxis])).numpy()
    np.testing.assert_allclose(pixels[:, :, 3::16, 5::16], golden.network_input, rtol=0, atol=1e-6)
