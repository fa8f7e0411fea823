"""CornerNet-Squeeze: raw maps and pairs of corners against those of CornerNet-Lite.

The images are samples of this repository; ``tests/test_rendered_parity.py`` compares the detections
of exported packages.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from upstream.weights_rule import fingerprint, make_state

from model_export.checkpoints.identify import identify
from model_export.checkpoints.load_weights import load_network
from model_export.checkpoints.safe_load import read_checkpoint
from model_export.detection_graph import DetectionGraph
from model_export.graph.heads import activate
from model_export.graph.normalization import NORMALIZATIONS
from model_export.tasks import task_of_framework

NAME = "cornernet_squeeze"
HEADS = {
    "tl_heat": "top_left_heatmap",
    "br_heat": "bottom_right_heatmap",
    "tl_tag": "top_left_embedding",
    "br_tag": "bottom_right_embedding",
    "tl_off": "top_left_offset",
    "br_off": "bottom_right_offset",
}
MARGIN = 5
"""Multiple of the error of float32 against float64 in the reference implementation."""
SIDE_PX = 383


@pytest.fixture(scope="module")
def graph(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectionGraph:
    """Load a file as *CornerNet-Lite* writes it: all names begin with ``module.``."""
    shapes = json.loads((upstream / "manifests" / f"{NAME}.json").read_text())["state_dict"]
    arrays = make_state(shapes, NAME)
    fingerprints = json.loads((upstream / "manifests/fingerprints.json").read_text())
    assert f"{fingerprint(arrays):08x}" == fingerprints[NAME]
    path = tmp_path_factory.mktemp("squeeze") / "CornerNet_Squeeze_500000.pkl"
    torch.save({f"module.{key}": torch.from_numpy(value) for key, value in arrays.items()}, path)
    state = read_checkpoint(path).state
    path.unlink()
    info = identify(state)
    assert (info.architecture, info.task, info.num_classes) == (NAME, "corner_pairs", 80)
    task = task_of_framework(info.task, "cornernet_lite")
    normalization = NORMALIZATIONS[task.normalization]
    network = load_network(info, state)
    return DetectionGraph(network, normalization, task.peaks_per_heatmap, task).eval()


@pytest.mark.parametrize("case", ["default_people_1", "flip_people_3"])
def test_maps_and_pairs_match_upstream(project: Path, graph: DetectionGraph, case: str) -> None:
    directory = project / "tests/upstream/goldens_rendered"
    noise = json.loads((directory / "fp32_vs_fp64.json").read_text())[f"{NAME}_{case}"]
    with np.load(directory / f"{NAME}_{case}.npz") as file:
        golden: dict[str, NDArray[Any]] = dict(file)
    canvas = _canvas(project / str(golden["image"]), golden)
    images = canvas[np.newaxis]
    if case.startswith("flip"):
        images = np.stack((canvas, canvas[:, ::-1]))
    with torch.inference_mode():
        pixels = graph.normalize(torch.from_numpy(images.copy()))
        raw = graph.network(pixels)
        outputs = graph.decode(activate(raw, graph.task.heads))
    assert np.abs(pixels.numpy()[:, :, 3::16, 5::16] - golden["s0_input_sub"]).max() < 1e-6

    for upstream_name, name in HEADS.items():
        step = 8 if name.endswith("heatmap") else 4
        expected = golden[f"s0_raw_{upstream_name}_sub{step}"]
        error = np.abs(raw[name][:, :, 1::step, 2::step].numpy() - expected).max()
        print(f"\nparity | {NAME} | {case} | {name} | {error:.1e}")
        assert error <= MARGIN * noise["heads"][upstream_name]["max_abs"]

    scores, class_ids, boxes, corner_scores = (output.numpy() for output in outputs)
    for row, (upstream, errors) in enumerate(
        zip(golden["s0_dets"], noise["detections"], strict=True)
    ):
        possible, expected = scores[row] > -1, upstream[upstream[:, 4] > -1]
        places = np.column_stack((boxes[row], class_ids[row]))[possible]
        distances = np.abs(places[:, np.newaxis] - expected[:, [0, 1, 2, 3, 7]]).max(axis=2)
        nearest = distances.argmin(axis=1)
        assert sorted(nearest) == list(range(len(expected)))
        found = np.column_stack((scores[row], corner_scores[row]))[possible]
        score = np.abs(found - expected[nearest, 4:7]).max()
        print(f"parity | {NAME} | {case} | {len(expected)} pairs | score {score:.1e}")
        assert distances.min(axis=1).max() <= MARGIN * errors["place"]
        assert score <= MARGIN * errors["score"]


def _canvas(path: Path, golden: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the image, RGB, padded with black as upstream pads it."""
    image = cv2.imread(str(path))
    assert image is not None
    assert f"{zlib.crc32(image.tobytes()):08x}" == str(golden["image_crc32"])
    top, _, left, _ = golden["s0_borders"][0].astype(int).tolist()
    canvas = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    assert f"{zlib.crc32(canvas.tobytes()):08x}" == str(golden["s0_crop_crc32"])
    return canvas[..., ::-1]
