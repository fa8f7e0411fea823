"""A package of *ExtremeNet* from export to the response of the service."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.images import encode
from support.serving import run_server

from model_export import pipeline
from model_export.architectures import ARCHITECTURES
from model_export.config import ExportConfig
from model_export.key_mappings.objects_as_points import to_checkpoint_key
from model_export.pipeline import export_package
from service.model_registry import load_models
from service.settings import Settings

SIDES = ("top", "left", "bottom", "right")


def test_a_served_package_returns_extreme_points_and_octagons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heatmaps = {f"{side}_heatmap": 2 for side in (*SIDES, "center")}
    torch.manual_seed(1)
    network = ARCHITECTURES["res_18_slim"].build(
        {**heatmaps, **{f"{side}_offset": 2 for side in SIDES}}
    )
    with torch.no_grad():
        for name in heatmaps:  # a score of 0.5 for one class and of less than 0.1 for the other
            network.get_submodule(f"heads.{name}.2").bias.copy_(torch.tensor([-5.0, 0]))
    state = {to_checkpoint_key(key): weight for key, weight in network.state_dict().items()}
    torch.save(state, tmp_path / "model.pth")
    config = ExportConfig(
        name="slim",
        version="1",
        architecture="res_18_slim",
        classes=("cat", "dog"),
        width_px=160,
        height_px=96,
    )
    noise = np.random.default_rng(1).integers(0, 256, (96, 160, 3), np.uint8)
    # Other tests verify with all images.
    monkeypatch.setattr(pipeline, "collect_images", lambda *_: [noise])
    package = export_package(config, tmp_path / "model.pth", tmp_path / "package", lambda _: None)
    settings = Settings(models=package.directory, max_batch_size=2, precision="fp32")
    with run_server(partial(load_models, report_step=print), settings) as server:
        response = server.client.post(
            "/detect?score_threshold=0.1&flip=true", content=encode(noise)
        )
    assert response.status_code == 200, response.text
    found = response.json()["detections"]
    assert found
    for detection in found:
        assert detection["class_name"] == "dog"
        top, left, bottom, right = detection["extreme_points"]
        box = [left[0], top[1], right[0], bottom[1]]
        assert np.allclose(detection["bbox"], box, atol=0.01)  # rounded
        octagon = np.array(detection["octagon"])
        assert octagon.shape == (8, 2)
        corners = [*octagon.min(axis=0), *octagon.max(axis=0)]
        assert np.allclose(corners, [*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])])
