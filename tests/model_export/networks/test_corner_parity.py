"""The corner systems' upstream detections, from their canvas and weights, through our graph.

Needs the end-to-end goldens that are too large for the repository; see the fixture ``shared``.
What takes minutes runs only when the environment variable HEAVY_TESTS is set.
"""

import json
import os
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.config import ExportConfig, make_plan
from model_export.graph.detection_graph import DetectionGraph
from model_export.graph.normalization import NORMALIZATIONS
from model_export.onnx.export import export_onnx
from model_export.tasks import TASKS
from model_export.verification.comparison import Detections
from model_export.verification.onnx_vs_torch import Run, onnx_runner, torch_runner


@dataclass(frozen=True)
class Noise:
    """What float32 costs in these very networks: its largest error against float64."""

    score: float
    corner_cells: float


# Measured with this graph on the first view of each case, with the same weights in float64.
NOISE = {
    "cornernet_hourglass104": Noise(score=1.0e-5, corner_cells=1.2e-5),
    "triplet_centernet52": Noise(score=6.5e-6, corner_cells=6.6e-6),
    "triplet_centernet104": Noise(score=1.1e-5, corner_cells=1.1e-5),
}
MARGIN = 5

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"),
    reason="takes minutes and up to 9 GB: set HEAVY_TESTS=1",
)
CASES = [
    ("triplet_centernet52", "default_odd"),
    pytest.param("triplet_centernet52", "default_land", marks=heavy),
    pytest.param("triplet_centernet104", "default_land", marks=heavy),
    pytest.param("cornernet_hourglass104", "default_land", marks=heavy),
]


@pytest.fixture(scope="module")
def runners(
    upstream: Path, weights_rule: types.ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Run]]:
    """PyTorch and ONNX Runtime on one network; each export is made once and takes every size."""

    @lru_cache(maxsize=1)  # the large ones do not fit into memory together
    def make(architecture: str) -> dict[str, Run]:
        shapes = json.loads((upstream / "manifests" / f"{architecture}.json").read_text())
        state = {
            key: torch.from_numpy(array)
            for key, array in weights_rule.make_state(shapes["state_dict"], architecture).items()
            if "num_batches" not in key
        }
        contents = identify(state, architecture)
        config = ExportConfig(name="parity", version="1")
        plan = make_plan(config, architecture, 128, contents.task, contents.num_classes, 0)
        graph = DetectionGraph(
            load_network(contents, state),
            NORMALIZATIONS[plan.normalization],
            TASKS[contents.task].keypoint_peaks,
            plan.task,
        ).eval()
        path = tmp_path_factory.mktemp("parity") / "model.onnx"
        names = plan.output_names()
        size = plan.input.height_px, plan.input.width_px
        export_onnx(graph, *size, names, path, plan.input.free_size)
        return {"PyTorch": torch_runner(graph, names), "ONNX Runtime": onnx_runner(path, names)}

    return make


def _match(local: NDArray, upstream: NDArray) -> tuple[NDArray, NDArray]:
    """Pair rows (place, class in the last column) that agree; each has one partner at most."""
    distances = np.abs(local[:, np.newaxis, :-1] - upstream[:, :-1]).max(axis=2)
    distances[local[:, np.newaxis, -1] != upstream[:, -1]] = np.inf
    nearest = distances.argmin(axis=1)
    rows = np.flatnonzero(distances.min(axis=1) < 0.5)
    assert len(set(nearest[rows])) == len(rows)
    return rows, nearest[rows]


def _pairs(detections: Detections) -> tuple[NDArray, NDArray]:
    """Places with classes, and three scores each, of the possible pairs."""
    possible = detections["scores"] > -1
    places = np.column_stack((detections["boxes"], detections["class_ids"]))
    scores = np.column_stack((detections["scores"], detections["corner_scores"]))
    return places[possible].astype(np.float64), scores[possible].astype(np.float64)


@pytest.mark.parametrize("runtime", ["PyTorch", "ONNX Runtime"])
@pytest.mark.parametrize(("architecture", "case"), CASES)
def test_upstream_corners(
    shared: Path,
    runners: Callable[[str], dict[str, Run]],
    architecture: str,
    case: str,
    runtime: str,
) -> None:
    with np.load(shared / "upstream" / "goldens" / f"{architecture}_{case}.npz") as golden:
        canvas = golden["s0_crop_u8"][..., ::-1]
        upstream_pairs = golden["s0_dets"].astype(np.float64)
        upstream_centers = golden["s0_center"].astype(np.float64) if "s0_center" in golden else None
    views = runners(architecture)[runtime](np.stack((canvas, canvas[:, ::-1])))
    for view, detections in enumerate(views):
        upstream = upstream_pairs[view][upstream_pairs[view][:, 4] > -1]
        what = f"{architecture} | {case} | view {view} | {runtime}"
        _check(what, *_pairs(detections), upstream[:, [0, 1, 2, 3, 7]], upstream[:, 4:7])
        if upstream_centers is not None:
            local = np.column_stack((detections["centers"], detections["center_class_ids"]))
            upstream = upstream_centers[view]
            scores = detections["center_scores"][:, np.newaxis].astype(np.float64)
            _check(f"{what}, centers", local, scores, upstream[:, :3], upstream[:, 3:])


def _check(
    what: str, places: NDArray, scores: NDArray, upstream_places: NDArray, upstream_scores: NDArray
) -> None:
    rows, others = _match(places, upstream_places)
    score_error = np.abs(scores[rows] - upstream_scores[others]).max()
    cell_error = np.abs(places[rows] - upstream_places[others]).max()
    print(
        f"\nparity | {what} | score {score_error:.1e} | corner {cell_error:.1e} cells | "
        f"matched {len(rows)} of {len(upstream_places)}"
    )
    noise = NOISE[what.partition(" ")[0]]
    assert score_error <= MARGIN * noise.score
    assert cell_error <= MARGIN * noise.corner_cells
    for found, matched in ((scores, rows), (upstream_scores, others)):
        left_over = np.delete(found[:, 0], matched)
        assert (left_over <= upstream_scores[:, 0].min() + MARGIN * noise.score).all()
