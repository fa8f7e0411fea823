"""Checkpoints with the heads of several tasks, from the file to the response of the service.

What each head gives is compared with packages of the same weights that have one task only.
"""

import shlex
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import State
from support.images import encode
from support.serving import run_server

from model_export import pipeline
from model_export.architectures import ARCHITECTURES
from model_export.cli import main
from model_export.config import ExportConfig
from model_export.key_mappings.objects_as_points import HEADS, to_checkpoint_key
from model_export.pipeline import export_package
from model_package import ModelPackage
from service.model_registry import load_models
from service.settings import Settings

WIDTH_PX, HEIGHT_PX = 160, 96
CLASSES = ("person", "horse", "bicycle")
KEYPOINTS = ("head", "left_foot", "right_foot", "tail")
BOXES = ("hm", "wh", "reg")
POSES = ("hps", "hm_hp", "hp_offset")
BOXES_3D = ("dep", "dim", "rot")
CHANNELS = {
    **{"hm": len(CLASSES), "wh": 2, "reg": 2},
    **{"hps": 2 * len(KEYPOINTS), "hm_hp": len(KEYPOINTS), "hp_offset": 2},
    **{"dep": 1, "dim": 3, "rot": 8},
}
NOISE = np.random.default_rng(1).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)
"""The image of verification."""
IMAGE = np.random.default_rng(2).integers(0, 256, (HEIGHT_PX // 2, WIDTH_PX, 3), np.uint8)
"""The image of requests; it is padded at top and bottom."""
CAMERA = {"fx": 120, "fy": 110, "cx": 80, "cy": 24}

Export = Callable[..., tuple[Path, ModelPackage]]


@pytest.fixture(scope="module")
def state(weights_rule: types.ModuleType) -> State:
    """Weights of a res_18_slim with all heads, whose scores are clearly different."""
    with torch.device("meta"):
        network = ARCHITECTURES["res_18_slim"].build(
            {HEADS[head]: channels for head, channels in CHANNELS.items()}
        )
    manifest = {
        to_checkpoint_key(key): [list(weight.shape), str(weight.dtype)]
        for key, weight in network.state_dict().items()
    }
    of_poses, of_boxes_3d = (
        weights_rule.TABLE[name] for name in ("multi_pose_res_18", "ddd_res_18")
    )
    heads = {**of_boxes_3d["heads"], **of_poses["heads"]}
    arrays = weights_rule.make_state(manifest, tab={**of_poses, "heads": heads})
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@pytest.fixture(scope="module")
def export(state: State, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports the given heads; same options for all."""

    @cache
    def run(*heads: str) -> tuple[Path, ModelPackage]:
        directory = tmp_path_factory.mktemp("several")
        checkpoint = directory / "model.pth"
        kept = {
            key: weight
            for key, weight in state.items()
            if key.partition(".")[0] not in CHANNELS or key.partition(".")[0] in heads
        }
        torch.save({"epoch": 1, "state_dict": kept}, checkpoint)
        config = ExportConfig(
            name="several",
            version="1",
            classes=CLASSES,
            keypoints=KEYPOINTS if "hps" in heads else None,
            keypoint_classes=("bicycle",) if "hps" in heads else None,
            width_px=WIDTH_PX,
            height_px=HEIGHT_PX,
            resize="letterbox",
            normalization="coco",
            top_k=50,
        )
        with pytest.MonkeyPatch.context() as patch:
            # Other tests verify with all images.
            patch.setattr(pipeline, "collect_images", lambda *_: [NOISE])
            patch.setattr(pipeline, "write_package_report", lambda *_: None)
            package = export_package(config, checkpoint, directory / "package", lambda _: None)
        return checkpoint, package

    return run


def _detect(package: ModelPackage, backend: str, **query: Any) -> list[dict[str, Any]]:
    settings = Settings(
        models=package.directory, max_batch_size=2, precision="fp32", backend=backend
    )
    with run_server(partial(load_models, report_step=print), settings) as server:
        response = server.client.post(
            "/detect", params={"score_threshold": 0.2, **query}, content=encode(IMAGE)
        )
    assert response.status_code == 200, response.text
    detections: list[dict[str, Any]] = response.json()["detections"]
    assert len(detections) > 5
    return detections


def _flatten(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    return [x for one in value for x in _flatten(one)] if isinstance(value, list) else [value]


def _assert_same(
    detections: list[dict[str, Any]], expected: list[dict[str, Any]], *fields: str
) -> None:
    """Check class, score and box, and the other ``fields`` of the ``expected`` detections.

    Keypoints are those of one of the classes.
    """
    assert len(detections) == len(expected)
    for detection, other in zip(detections, expected, strict=True):
        present = [
            field for field in fields if field != "keypoints" or other["class_name"] == "bicycle"
        ]
        assert other.keys() == {"class_id", "class_name", "score", "bbox", *present}
        assert detection["class_name"] == other["class_name"]
        assert ("keypoints" in detection) == (other["class_name"] == "bicycle")
        for field in ("score", "bbox", *present):
            np.testing.assert_allclose(
                _flatten(detection[field]),
                _flatten(other[field]),
                rtol=1e-4,  # two graphs, whose convolutions may be fused differently
                atol=2e-3,  # two steps of the rounding of pixels
                err_msg=field,
            )


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_one_response_has_what_the_packages_of_each_task_return(
    export: Export, backend: str
) -> None:
    detections = _detect(export(*CHANNELS)[1], backend, **CAMERA)
    assert len({one["class_name"] for one in detections}) > 1
    keypoints = [point for one in detections for point in one.get("keypoints", ())]
    assert any(score for _, _, score in keypoints)
    _assert_same(detections, _detect(export(*BOXES, *POSES)[1], backend), "keypoints")
    boxes_3d = _detect(export(*BOXES, *BOXES_3D)[1], backend, **CAMERA)
    _assert_same(detections, boxes_3d, "box3d")


def test_the_manifest_describes_all_tasks(export: Export) -> None:
    manifest = export(*CHANNELS)[1].manifest
    assert manifest.decoder.kind == "center_poses_and_boxes_3d"
    assert [spec.name for spec in manifest.decoder.outputs()] == [
        *("scores", "class_ids", "centers", "sizes"),
        *("keypoints", "keypoint_scores", "depths", "dimensions", "rotations"),
    ]
    assert manifest.verification.detections
    assert set(manifest.verification.worst_errors) >= {"keypoints", "depths", "rotations"}


@pytest.mark.parametrize(
    ("heads", "task"),
    [((*BOXES, *POSES), "poses"), (tuple(CHANNELS), "poses_and_boxes_3d")],
)
def test_inspect_prints_a_command_that_exports(
    export: Export,
    heads: tuple[str, ...],
    task: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, package = export(*heads)
    assert main(["inspect", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{checkpoint}: res_18_slim for {task}, ")
    assert "detects: 3 classes, 4 keypoints" in lines
    assert any("--keypoint-classes" in line for line in lines)
    command = next(line for line in lines if line.startswith("command: "))
    assert command.endswith(" --output models/res_18_slim --classes NAMES --keypoints NAMES")
    for hint in ("classes: neither the file nor the task has 3", "keypoints: neither the file"):
        assert any(line.startswith(hint) for line in lines)

    _, program, *arguments = shlex.split(command)
    assert program == "centernet-export"
    for names in (CLASSES, KEYPOINTS):
        arguments[arguments.index("NAMES")] = ",".join(names)
    configs = []

    def export_as_before(config: ExportConfig, *_: Any, **__: Any) -> ModelPackage:
        configs.append(config)
        return package

    monkeypatch.setattr("model_export.cli.export_package", export_as_before)
    assert main(arguments) == 0
    assert [(config.classes, config.keypoints) for config in configs] == [(CLASSES, KEYPOINTS)]
