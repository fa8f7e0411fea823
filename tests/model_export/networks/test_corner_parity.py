"""Comparison of the corner models with upstream detections, from the upstream canvas and weights.

Needs the end-to-end goldens that are too large for the repository; see the fixture ``shared``.
Tests that take minutes run only if the environment variable HEAVY_TESTS is set.
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
from support.openvino import openvino_runner

from labels.outputs import Outputs
from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.config import ExportConfig, NetworkInfo, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.graph.corner_pairs import MAX_EMBEDDING_DISTANCE, find_corners
from model_export.graph.normalization import NORMALIZATIONS
from model_export.onnx.export import export_onnx
from model_export.tasks import TASKS
from model_export.verification.onnx_vs_torch import Run, onnx_runner, torch_runner


@dataclass(frozen=True)
class Noise:
    """Largest error of float32 against float64 in a network."""

    score: float
    corner_cells: float
    embedding: float
    """Of the distance of two embeddings: the sum of both errors."""


# Measured with this graph, with the same weights in float64: on the first input of each case, and
# for embeddings, which have nearly the same spread in every image, on a sample of this repository.
NOISE = {
    "cornernet_hourglass104": Noise(score=1.0e-5, corner_cells=1.2e-5, embedding=2.5e-5),
    "triplet_centernet52": Noise(score=6.5e-6, corner_cells=6.6e-6, embedding=1.6e-5),
    "triplet_centernet104": Noise(score=1.1e-5, corner_cells=1.1e-5, embedding=6.4e-5),
}
MARGIN = 5

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"),
    reason="takes minutes and up to 10 GB: set HEAVY_TESTS=1",
)
CASES = [
    ("triplet_centernet52", "default_odd"),
    pytest.param("triplet_centernet52", "default_land", marks=heavy),
    pytest.param("triplet_centernet104", "default_land", marks=heavy),
    pytest.param("cornernet_hourglass104", "default_land", marks=heavy),
]

# tests/test_rendered_parity.py runs exported corner networks on both engines without HEAVY_TESTS.
RUNTIMES = [
    "PyTorch",
    pytest.param("ONNX Runtime", marks=heavy),
    pytest.param("OpenVINO", marks=heavy),
]


@pytest.fixture(scope="module")
def graph_of(upstream: Path, weights_rule: types.ModuleType) -> Callable[[str], DetectionGraph]:
    @lru_cache(maxsize=1)  # the large ones do not fit into memory together
    def make(architecture: str) -> DetectionGraph:
        shapes = json.loads((upstream / "manifests" / f"{architecture}.json").read_text())
        state = {
            key: torch.from_numpy(array)
            for key, array in weights_rule.make_state(shapes["state_dict"], architecture).items()
            if "num_batches" not in key
        }
        checkpoint_info = identify(state, architecture)
        task = TASKS[checkpoint_info.task]
        network = load_network(checkpoint_info, state)
        normalization = NORMALIZATIONS[task.normalization]
        return DetectionGraph(network, normalization, task.peaks_per_heatmap, task).eval()

    return make


@pytest.fixture(scope="module")
def runner_of(
    graph_of: Callable[[str], DetectionGraph], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, int, int], Run]:
    """Return a function that makes the runner of a network in a runtime, for one input size."""

    @lru_cache(maxsize=1)
    def file_of(architecture: str, height_px: int, width_px: int) -> Path:
        path = tmp_path_factory.mktemp("parity") / "model.onnx"
        # A dynamic size, as in packages, takes twice as long to trace.
        export_onnx(graph_of(architecture), height_px, width_px, _outputs(architecture), path)
        return path

    def make(architecture: str, runtime: str, height_px: int, width_px: int) -> Run:
        names = _outputs(architecture)
        if runtime == "PyTorch":
            return torch_runner(graph_of(architecture), names)
        path = file_of(architecture, height_px, width_px)
        if runtime == "OpenVINO":
            return openvino_runner(path, names, max(height_px, width_px))
        return onnx_runner(path, names)

    return make


def _outputs(architecture: str) -> list[str]:
    (task,) = ARCHITECTURES[architecture].tasks
    config = ExportConfig(name="parity", version="1")
    network = NetworkInfo(architecture, task, num_classes=80, input_multiple=128)
    return resolve_export(config, network).output_names()


def _match(local: NDArray, upstream: NDArray) -> tuple[NDArray, NDArray]:
    """Match rows (position, class in the last column); each row matches at most once."""
    distances = np.abs(local[:, np.newaxis, :-1] - upstream[:, :-1]).max(axis=2)
    distances[local[:, np.newaxis, -1] != upstream[:, -1]] = np.inf
    nearest = distances.argmin(axis=1)
    rows = np.flatnonzero(distances.min(axis=1) < 0.5)
    assert len(set(nearest[rows])) == len(rows)
    return rows, nearest[rows]


def _pairs(detections: Outputs) -> tuple[NDArray, NDArray]:
    """Return positions with classes, and three scores each, of the possible pairs."""
    possible = detections["scores"] > -1
    positions = np.column_stack((detections["boxes"], detections["class_ids"]))
    scores = np.column_stack((detections["scores"], detections["corner_scores"]))
    return positions[possible].astype(np.float64), scores[possible].astype(np.float64)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("architecture", "case"), CASES)
def test_corner_detections_match_upstream(
    shared: Path,
    graph_of: Callable[[str], DetectionGraph],
    runner_of: Callable[[str, str, int, int], Run],
    architecture: str,
    case: str,
    runtime: str,
) -> None:
    with np.load(shared / "upstream" / "goldens" / f"{architecture}_{case}.npz") as golden:
        canvas = golden["s0_crop_u8"][..., ::-1]
        upstream_pairs = golden["s0_dets"].astype(np.float64)
        upstream_centers = golden["s0_center"].astype(np.float64) if "s0_center" in golden else None
    run = runner_of(architecture, runtime, *canvas.shape[:2])
    images = np.stack((canvas, canvas[:, ::-1]))
    for row, detections in enumerate(run(images)):
        upstream = upstream_pairs[row][upstream_pairs[row][:, 4] > -1]
        label = f"{architecture} | {case} | row {row} | {runtime}"

        def is_on_threshold(pairs: NDArray, image: NDArray = images[row : row + 1]) -> NDArray:
            distances = _embedding_distances(graph_of(architecture), image, pairs)
            limit = MARGIN * NOISE[architecture].embedding
            return np.abs(distances - MAX_EMBEDDING_DISTANCE) <= limit

        pairs = upstream[:, [0, 1, 2, 3, 7]], upstream[:, 4:7]
        _check(label, *_pairs(detections), *pairs, is_on_threshold)
        if upstream_centers is not None:
            local = np.column_stack((detections["centers"], detections["center_class_ids"]))
            upstream = upstream_centers[row]
            scores = detections["center_scores"][:, np.newaxis].astype(np.float64)
            _check(f"{label}, centers", local, scores, upstream[:, :3], upstream[:, 3:])


def _embedding_distances(graph: DetectionGraph, image: NDArray, pairs: NDArray) -> NDArray:
    """Return the distances (n,) of the embeddings of pairs (n, 5) in one image (1, H, W, 3)."""
    embeddings = []
    with torch.inference_mode():
        maps = graph.maps(torch.from_numpy(image.copy()))
        for kind, points in (("top_left", pairs[:, :2]), ("bottom_right", pairs[:, 2:4])):
            corners = find_corners(maps, kind, graph.top_k)
            offsets = np.abs(points[:, np.newaxis] - corners.points[0].numpy()).max(axis=2)
            embeddings.append(corners.embeddings[0].numpy()[offsets.argmin(axis=1)])
    return np.abs(embeddings[0] - embeddings[1])


def _check(
    label: str,
    positions: NDArray,
    scores: NDArray,
    upstream_positions: NDArray,
    upstream_scores: NDArray,
    is_on_threshold: Callable[[NDArray], NDArray] | None = None,
) -> None:
    """Check matched rows, and that rounding decides whether the unmatched ones exist.

    They are at the top-K limit, or pairs whose embeddings are at the threshold.
    """
    rows, others = _match(positions, upstream_positions)
    score_error = np.abs(scores[rows] - upstream_scores[others]).max()
    cell_error = np.abs(positions[rows] - upstream_positions[others]).max()
    print(
        f"\nparity | {label} | score {score_error:.1e} | corner {cell_error:.1e} cells | "
        f"matched {len(rows)} of {len(upstream_positions)}"
    )
    noise = NOISE[label.partition(" ")[0]]
    assert score_error <= MARGIN * noise.score
    assert cell_error <= MARGIN * noise.corner_cells
    limit = upstream_scores[:, 0].min() + MARGIN * noise.score
    for places, found, matched in (
        (positions, scores, rows),
        (upstream_positions, upstream_scores, others),
    ):
        left_over = np.setdiff1d(np.flatnonzero(found[:, 0] > limit), matched)
        if len(left_over):
            assert is_on_threshold is not None
            assert is_on_threshold(places[left_over]).all()
            print(f"parity | {label} | {len(left_over)} on the threshold of embeddings")
