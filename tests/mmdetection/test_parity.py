"""Parity with MMDetection, from the checkpoint and the encoded image to the final detections.

``README.md`` says how the goldens were made. Networks run on both CPU backends in fp32; the
checkpoint of the first was written by MMEngine itself. Hourglass-104 needs HEAVY_TESTS.
"""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.exports import export_for_parity
from support.matching import match_boxes
from support.serving import run_server
from support.stored_checkpoints import restore_checkpoint

from mmdetection.weights import weights_of
from model_export.class_names import COCO
from model_export.config import ExportConfig
from model_package import ModelPackage
from service.detector import load_detector
from service.model_registry import load_models
from service.settings import Settings

DIRECTORY = Path(__file__).parent
BACKENDS = ("onnxruntime-cpu", "openvino")
IMAGES = {
    "centernet_r18_dcnv2": ("people_1", "blood_smear_1"),
    "centernet_r18": ("people_1", "blood_smear_1"),
    "cornernet_hourglass104": ("people_1",),
}
_DEFAULTS = ExportConfig(name="parity", version="1")
CONFIGS = {
    "centernet_r18_dcnv2": _DEFAULTS,
    "centernet_r18": _DEFAULTS,
    # The size of an image of 256 pixels.
    "cornernet_hourglass104": replace(_DEFAULTS, width_px=383, height_px=383, max_side_px=383),
}
MATCHED = 0.999
"""Share of the detections of both sides that must match."""
SCORE_ERROR = 1e-4
BOX_ERROR_PX = 0.05
"""In pixels of the image."""

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"),
    reason="takes minutes and up to 10 GB: set HEAVY_TESTS=1",
)


def _cases() -> list[object]:
    return [
        pytest.param(
            network,
            image,
            backend,
            marks=heavy if network.startswith("cornernet") else [],
            id=f"{network}-{image}-{backend}",
        )
        for network, images in IMAGES.items()
        for image in images
        for backend in BACKENDS
    ]


@pytest.fixture(scope="module")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelPackage]:
    """Return a function that exports the checkpoint of a network."""

    @lru_cache(maxsize=1)  # the cases of a network follow each other
    def export(network: str) -> ModelPackage:
        directory = tmp_path_factory.mktemp(network)
        checkpoint = directory / "epoch_1.pth"
        write_checkpoint(network, checkpoint)
        package = export_for_parity(
            CONFIGS[network],
            checkpoint,
            directory / "package",
            one_size=network.startswith("cornernet"),
        )
        checkpoint.unlink()
        return package

    return export


def write_checkpoint(network: str, path: Path) -> None:
    """Write the weights of the rule, for the first network in a file of MMEngine."""
    shapes = json.loads((DIRECTORY / "manifests" / f"{network}.json").read_text())
    state = {key: torch.from_numpy(value) for key, value in weights_of(network, shapes).items()}
    archive = DIRECTORY / "checkpoints" / f"{network}.pth.xz"
    if archive.exists():
        restore_checkpoint(archive, state, path)
    else:
        torch.save({"meta": {"dataset_meta": {"classes": COCO}}, "state_dict": state}, path)


def test_a_file_of_mmengine_is_served(
    project: Path, package_of: Callable[[str], ModelPackage]
) -> None:
    package = package_of("centernet_r18_dcnv2")
    golden, encoded = read_golden(project, "centernet_r18_dcnv2", "people_1")
    settings = Settings(models=package.directory, max_batch_size=1, precision="fp32")
    with run_server(partial(load_models, report_step=print), settings) as server:
        response = server.client.post("/detect?score_threshold=0&top_k=100", content=encoded)
    assert response.status_code == 200, response.text
    rows = [
        [*found["bbox"], found["score"], found["class_id"]]
        for found in response.json()["detections"]
    ]
    assert response.json()["detections"][0]["class_name"] in COCO
    compare("HTTP", np.array(rows), golden)


@pytest.mark.parametrize(("network", "image", "backend"), _cases())
def test_detections_equal_those_of_mmdetection(
    project: Path,
    package_of: Callable[[str], ModelPackage],
    network: str,
    image: str,
    backend: str,
) -> None:
    golden, encoded = read_golden(project, network, image)
    directory = package_of(network).directory
    with load_detector(directory, backend=backend, precision="fp32") as detector:
        found = detector.detect(encoded, score_threshold=0.0, top_k=100).detections
    compare(
        f"{network} | {image} | {backend}",
        np.column_stack([found.boxes_xyxy, found.scores, found.class_ids]),
        golden,
    )


def read_golden(project: Path, network: str, image: str) -> tuple[NDArray[np.float32], bytes]:
    """Return rows of box, score and label, and the encoded image."""
    with np.load(DIRECTORY / "goldens" / f"{network}_{image}.npz") as file:
        golden: dict[str, NDArray[Any]] = dict(file)
    path = project / str(golden["image"])
    pixels = cv2.imread(str(path))
    assert pixels is not None
    assert f"{zlib.crc32(pixels.tobytes()):08x}" == str(golden["image_crc32"])
    return golden["final"], path.read_bytes()


def compare(label: str, found: NDArray[np.float64], golden: NDArray[np.float32]) -> None:
    """Match rows of the same class by their boxes and check the differences."""
    error = match_boxes(found, golden.astype(np.float64))
    print(f"\nparity | {label} | {len(golden)} detections | {error}")
    assert error.matched >= MATCHED
    assert error.worst_score <= SCORE_ERROR
    assert error.worst_corner_px <= BOX_ERROR_PX
