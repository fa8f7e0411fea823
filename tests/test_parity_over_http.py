"""Parity of a served package with the upstream detections of a photo, over HTTP.

The canvas tests (``tests/model_export``) use the upstream network input. Here the photo passes
through the whole service: image decoding, warp, batching, decoding and rounding. Only the warp may
differ: upstream accuracies were measured with OpenCV 3 and 4, the goldens with OpenCV 5.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.images import encode
from support.matching import match_boxes
from support.serving import RunningServer, run_server
from upstream.weights_rule import make_state

from model_export.class_names import COCO
from model_export.config import ExportConfig
from model_export.pipeline import export_package
from service.model_registry import load_models
from service.settings import Settings

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"), reason="takes minutes: set HEAVY_TESTS=1"
)
CASES = [
    ("res_18", "default_land", "land_640x402"),
    ("res_18", "default_port", "port_400x600"),
    pytest.param("res_50", "default_land", "land_640x402", marks=heavy),
    pytest.param("res_101", "default_land", "land_640x402", marks=heavy),
]


@pytest.fixture(scope="module")
def server_of(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], RunningServer]]:
    """Return a function that serves an architecture with deterministic weights."""
    with ExitStack() as stack:

        @cache
        def serve(architecture: str) -> RunningServer:
            directory = tmp_path_factory.mktemp(architecture)
            manifest = json.loads(
                (shared / f"upstream/manifests/ctdet_{architecture}.json").read_text()
            )
            arrays = make_state(manifest["state_dict"], f"ctdet_{architecture}")
            checkpoint = directory / "model.pth"
            torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, checkpoint)
            config = ExportConfig(
                name=architecture,
                version="1",
                architecture=architecture,
                classes=COCO,
                normalization="coco-demo",
            )
            package = export_package(config, checkpoint, directory / "package", lambda _: None)
            settings = Settings(models=package.directory, max_batch_size=2, precision="fp32")
            return stack.enter_context(
                run_server(partial(load_models, report_step=print), settings)
            )

        yield serve


def detect(server: RunningServer, body: bytes) -> NDArray[np.float64]:
    """Return rows of x1, y1, x2, y2, score and 1-based class, like the goldens."""
    response = server.client.post("/detect?score_threshold=0&top_k=100", content=body)
    assert response.status_code == 200, response.text
    return np.array(
        [
            [*found["bbox"], found["score"], found["class_id"] + 1]
            for found in response.json()["detections"]
        ]
    )


@pytest.mark.parametrize(("architecture", "case", "photo"), CASES)
def test_photo_detections_match_upstream(
    server_of: Callable[[str], RunningServer],
    shared: Path,
    architecture: str,
    case: str,
    photo: str,
) -> None:
    upstream = shared / "upstream"
    golden = np.load(upstream / f"goldens/ctdet_{architecture}_{case}.npz")["final"]
    server = server_of(architecture)
    local = detect(server, (upstream / f"photos/{photo}.png").read_bytes())
    error = match_boxes(local, golden)
    # Canvases of the same photo from two OpenCV versions: a canvas of the input size passes the
    # letterbox unchanged, so both can be sent as images.
    canvases = [
        np.load(upstream / f"goldens/preproc_{version}.npz")[f"fix512_{photo}"][..., ::-1].copy()
        for version in ("cv4", "cv5")
    ]
    between = match_boxes(*(detect(server, encode(canvas)) for canvas in canvases))
    print(
        f"\nphoto | {architecture} | {case} | service to golden: {error} | OpenCV 4 to 5: {between}"
    )
    assert error.matched >= 0.99
    assert error.mean_offset_px < 0.1, "the boxes are shifted"
    assert error.worst_score <= between.worst_score
    assert error.worst_corner_px <= between.worst_corner_px
    # With the same OpenCV version, only float32 and rounding errors remain.
    assert error.worst_score <= 1e-4
    assert error.worst_corner_px <= 0.05
