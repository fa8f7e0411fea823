"""Packages of every task, with flip averaging and dynamic input sizes."""

import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import State

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.training_record import TrainingRecord
from model_export.config import ExportConfig, NetworkInfo, ResolvedExport, resolve_export
from model_export.errors import ConfigError
from model_export.graph.boxes_3d import KITTI_PROJECTION
from model_export.key_mappings.objects_as_points import to_checkpoint_key
from model_export.pipeline import FLIP_ONNX_FILE, ONNX_FILE, export_package
from model_export.tasks import TASKS
from model_export.verification.images import synthetic_images
from model_package import FreeSize, ModelPackage

KEYPOINTS = ("snout", "left ear", "right ear", "tail")
MULTI_POSE, DDD = "multi_pose_dla_34", "ddd_dla_34"  # their head gains give distinct scores


@pytest.fixture(scope="module")
def slim_state_for(weights_rule: types.ModuleType) -> Callable[[str, int, int, str], State]:
    def make(task: str, classes: int, keypoints: int, table: str) -> State:
        heads = TASKS[task].heads
        with torch.device("meta"):
            network = ARCHITECTURES["res_18_slim"].build(
                {name: head.count(classes, keypoints) for name, head in heads.items()}
            )
        manifest = {
            to_checkpoint_key(key): [list(weight.shape), str(weight.dtype)]
            for key, weight in network.state_dict().items()
        }
        tab = weights_rule.TABLE["ctdet_res_18"] | {"heads": weights_rule.TABLE[table]["heads"]}
        arrays = weights_rule.make_state(manifest, tab=tab)
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    return make


@pytest.fixture(scope="module")
def pose_package(
    slim_state_for: Callable[[str, int, int, str], State],
    tmp_path_factory: pytest.TempPathFactory,
) -> ModelPackage:
    directory = tmp_path_factory.mktemp("poses")
    checkpoint = directory / "poses.pth"
    torch.save(slim_state_for("poses", 1, len(KEYPOINTS), MULTI_POSE), checkpoint)
    config = ExportConfig(
        name="mice",
        version="1",
        classes=("mouse",),
        keypoints=KEYPOINTS,
        width_px=160,
        height_px=96,
        top_k=50,
        max_side_px=320,
        flip=True,
    )
    return export_package(config, checkpoint, directory / "package", lambda _: None)


def _run(package: ModelPackage, file: str, image: NDArray[np.uint8]) -> dict[str, NDArray]:
    session = ort.InferenceSession(
        str(package.directory / file), providers=["CPUExecutionProvider"]
    )
    names = [spec.name for spec in package.manifest.decoder.outputs()]
    return {
        name: values[0]
        for name, values in zip(
            names, session.run(names, {"images": image[np.newaxis]}), strict=True
        )
    }


def test_a_pose_package_describes_its_decoder(pose_package: ModelPackage) -> None:
    manifest = pose_package.manifest
    assert manifest.provenance.architecture == "res_18_slim"  # detected
    assert manifest.decoder.kind == "center_poses"
    assert manifest.decoder.keypoints == KEYPOINTS
    assert manifest.decoder.skeleton == ()
    assert manifest.input.resize == "letterbox"
    assert manifest.input.free_size == FreeSize(multiple_px=32, extra_px=1, max_side_px=320)
    assert {artifact.file: artifact.flip for artifact in manifest.artifacts} == {
        ONNX_FILE: False,
        FLIP_ONNX_FILE: True,
    }
    assert {"keypoints", "keypoint_scores"} < manifest.verification.worst_errors.keys()
    assert manifest.verification.inputs == 8  # two of another size


def test_keypoint_classes_are_some_of_the_classes() -> None:
    def export(*keypoint_classes: str) -> ResolvedExport:
        config = ExportConfig(
            name="mice",
            version="1",
            classes=("cage", "mouse", "rat"),
            keypoints=KEYPOINTS,
            keypoint_classes=keypoint_classes,
        )
        return resolve_export(config, NetworkInfo("res_18_slim", "poses", 3, len(KEYPOINTS)))

    assert export().decoder().keypoint_class_ids == ()
    assert export("rat", "mouse").decoder().keypoint_class_ids == (1, 2)
    boxes = ExportConfig(name="mice", version="1", classes=("mouse",), keypoint_classes=("mouse",))
    with pytest.raises(ConfigError, match="this network has no keypoints"):
        resolve_export(boxes, NetworkInfo("res_18_slim", "boxes", 1))
    record = TrainingRecord(
        architecture="res_18_slim",
        task="poses",
        normalization="coco",
        classes=("mouse",),
        keypoint_classes=("mouse",),
        input_width=64,
        input_height=64,
    )
    completed = record.complete(ExportConfig(name="mice", version="1"))
    assert completed.keypoint_classes == ("mouse",)
    with pytest.raises(ConfigError, match="'cat' is not one of the classes cage, mouse, rat"):
        export("cat")


@pytest.mark.parametrize("size", [(96, 160), (32, 32), (320, 64)])
def test_every_input_size_gives_all_outputs(
    pose_package: ModelPackage, size: tuple[int, int]
) -> None:
    image = synthetic_images(*size)[1]
    for file in (ONNX_FILE, FLIP_ONNX_FILE):
        outputs = _run(pose_package, file, image)
        for spec in pose_package.manifest.decoder.outputs():
            assert outputs[spec.name].shape == spec.shape
            assert outputs[spec.name].dtype == spec.dtype


def test_averaged_scores_are_invariant_to_a_flip(pose_package: ModelPackage) -> None:
    image = synthetic_images(96, 160)[1]
    flipped = np.ascontiguousarray(image[:, ::-1])
    one, other = (_run(pose_package, FLIP_ONNX_FILE, one_image) for one_image in (image, flipped))
    np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=1e-5)
    plain = _run(pose_package, ONNX_FILE, image)
    assert np.abs(one["scores"] - plain["scores"]).max() > 1e-3


def test_boxes_3d_have_the_default_configuration(
    slim_state_for: Callable[[str, int, int, str], State], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "road.pth"
    torch.save(slim_state_for("boxes_3d", 3, 0, DDD), checkpoint)
    config = ExportConfig(name="road", version="1", top_k=20, width_px=320)
    package = export_package(config, checkpoint, tmp_path / "package", lambda _: None)
    manifest = package.manifest
    assert manifest.classes == ("Pedestrian", "Car", "Cyclist")
    assert (manifest.input.width_px, manifest.input.height_px) == (320, 384)
    assert manifest.input.resize == "fit_width"
    assert manifest.decoder.kind == "center_boxes_3d"
    assert manifest.decoder.projection == KITTI_PROJECTION
    assert manifest.provenance.normalization == "imagenet"
    assert {"depths", "dimensions", "rotations"} < manifest.verification.worst_errors.keys()
    outputs = _run(package, ONNX_FILE, synthetic_images(384, 320)[1])
    assert (outputs["depths"] > 0).all()


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        ({"task": "boxes_3d"}, {"flip": True}, "flip averaging is not supported"),
        ({"input_multiple": 128}, {}, "multiples of 128, for instance 128x128"),
        ({}, {"max_side_px": 128}, "limited to 128 px a side, but .* 160x96"),
        (
            {"task": "boxes_3d"},
            {"projection": (1.0,) * 11},
            "projection: Tuple should have at least",
        ),
        ({}, {"resize": "keep_resolution"}, "requires free_size"),
        ({}, {"edge_aggregation": 0.1}, "no extreme points"),
        ({"task": "extreme_points"}, {"edge_aggregation": 1.1}, "must be from 0 to 1"),
    ],
)
def test_contradictory_options_are_rejected(
    slim_config: ExportConfig,
    slim_network: NetworkInfo,
    network: dict[str, Any],
    change: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_export(replace(slim_config, **change), replace(slim_network, **network))


def test_names_without_a_default_are_required(
    slim_checkpoint: Path, slim_config: ExportConfig, tmp_path: Path
) -> None:
    config = replace(slim_config, classes=None)
    with pytest.raises(ConfigError, match=r"detects 3 classes, .* Give them with --classes"):
        export_package(config, slim_checkpoint, tmp_path / "out", lambda _: None)
