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
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.exports import export_for_parity
from support.images import encode
from support.matching import match_boxes
from support.serving import RunningServer, run_server
from support.upstream_extreme_points import groups_of_golden
from support.upstream_nms import assert_same_rows, suppress_like_upstream
from upstream.weights_rule import make_state

from model_export.config import ExportConfig
from service.model_registry import load_models
from service.settings import Settings

heavy = pytest.mark.skipif(
    not os.environ.get("HEAVY_TESTS"), reason="takes minutes: set HEAVY_TESTS=1"
)
CASES = [
    ("ctdet_res_18", "default_land", "land_640x402"),
    ("ctdet_res_18", "default_port", "port_400x600"),
    pytest.param("ctdet_res_50", "default_land", "land_640x402", marks=heavy),
    pytest.param("ctdet_res_101", "default_land", "land_640x402", marks=heavy),
]


@pytest.fixture(scope="module")
def server_of(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], RunningServer]]:
    """Return a function that serves a network with deterministic weights."""
    with ExitStack() as stack:

        @cache
        def serve(network: str) -> RunningServer:
            directory = tmp_path_factory.mktemp(network)
            manifest = json.loads((shared / f"upstream/manifests/{network}.json").read_text())
            arrays = make_state(manifest["state_dict"], network)
            checkpoint = directory / "model.pth"
            torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, checkpoint)
            config = ExportConfig(name=network, version="1", normalization="coco-demo")
            package = export_for_parity(config, checkpoint, directory / "package", one_size=False)
            settings = Settings(models=package.directory, max_batch_size=2, precision="fp32")
            return stack.enter_context(
                run_server(partial(load_models, report_step=print), settings)
            )

        yield serve


def detect(server: RunningServer, body: bytes, options: str = "") -> list[dict[str, Any]]:
    response = server.client.post(f"/detect?score_threshold=0&top_k=100{options}", content=body)
    assert response.status_code == 200, response.text
    detections: list[dict[str, Any]] = response.json()["detections"]
    return detections


def to_rows(detections: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Return rows of x1, y1, x2, y2, score and 1-based class, like the goldens."""
    return np.array(
        [[*found["bbox"], found["score"], found["class_id"] + 1] for found in detections]
    )


@pytest.mark.parametrize(("network", "case", "photo"), CASES)
def test_photo_detections_match_upstream(
    server_of: Callable[[str], RunningServer],
    shared: Path,
    network: str,
    case: str,
    photo: str,
) -> None:
    upstream = shared / "upstream"
    golden = np.load(upstream / f"goldens/{network}_{case}.npz")["final"]
    server = server_of(network)
    local = to_rows(detect(server, (upstream / f"photos/{photo}.png").read_bytes()))
    error = match_boxes(local, golden)
    # Canvases of the same photo from two OpenCV versions: a canvas of the input size passes the
    # letterbox unchanged, so both can be sent as images.
    canvases = [
        np.load(upstream / f"goldens/preproc_{version}.npz")[f"fix512_{photo}"][..., ::-1].copy()
        for version in ("cv4", "cv5")
    ]
    between = match_boxes(*(to_rows(detect(server, encode(canvas))) for canvas in canvases))
    print(f"\nphoto | {network} | {case} | service to golden: {error} | OpenCV 4 to 5: {between}")
    assert error.matched >= 0.99
    assert error.mean_offset_px < 0.1, "the boxes are shifted"
    assert error.worst_score <= between.worst_score
    assert error.worst_corner_px <= between.worst_corner_px
    # With the same OpenCV version, only float32 and rounding errors remain.
    assert error.worst_score <= 1e-4
    assert error.worst_corner_px <= 0.05


@heavy
def test_extreme_points_of_a_photo_match_upstream(
    server_of: Callable[[str], RunningServer], shared: Path
) -> None:
    upstream = shared / "upstream"
    with np.load(upstream / "goldens/exdet_dla_34_default_land.npz") as file:
        golden = dict(file)
    groups, points = groups_of_golden(golden)
    every, survivors = suppress_like_upstream(
        groups[:, :5], groups[:, 5].astype(np.int32), 100, weight_exp=None
    )
    assert_same_rows(every, golden["final"], 5e-4, 2e-6)
    body = (upstream / "photos/land_640x402.png").read_bytes()
    found = detect(server_of("exdet_dla_34"), body, "&flip=true")
    error = match_boxes(to_rows(found), survivors.astype(np.float64))
    distances = [
        np.abs(points - detection["extreme_points"])[groups[:, 5] == detection["class_id"] + 1]
        .max(axis=(1, 2))
        .min()
        for detection in found
    ]
    print(
        f"\nphoto | exdet_dla_34 | default_land | service to golden: {error} | "
        f"points {max(distances):.1e} px | {len(found)} detections"
    )
    assert len(found) == len(survivors)
    assert error.matched >= 0.99
    assert error.worst_corner_px <= 0.05
    assert max(distances) <= 0.05
    # Scores are sums of five heatmaps, and those of DLA amplify the last digits of the input.
    assert error.worst_score <= 5e-4
