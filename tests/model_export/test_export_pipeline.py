"""An export gives a verified package, or an error and no files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_export import pipeline
from model_export.config import ExportConfig, NetworkInfo, resolve_export
from model_export.detection_graph import DetectionGraph
from model_export.errors import CheckpointError, ConfigError, ExportError, VerificationError
from model_export.pipeline import STEPS, export_package
from model_package import ModelPackage, PackageExistsError, load_package
from model_package.directory import sha256_of


def _ignore(_: str) -> None:
    """Discard progress messages."""


def test_the_manifest_describes_the_export(
    slim_package: ModelPackage, slim_config: ExportConfig
) -> None:
    assert load_package(slim_package.directory) == slim_package
    manifest = slim_package.manifest
    assert manifest.name == slim_config.name
    assert manifest.classes == slim_config.classes
    assert (manifest.input.width_px, manifest.input.height_px) == (160, 96)
    assert manifest.decoder.output_stride == 4
    assert manifest.provenance.architecture == "res_18_slim"
    assert manifest.provenance.normalization == "coco"
    checkpoint = slim_package.directory.parent / "slim.pth"
    assert manifest.provenance.checkpoint_sha256 == sha256_of(checkpoint)
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.provenance.tools)
    assert manifest.verification.inputs == 6
    assert manifest.verification.matched_fraction > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization": "none"}, "there is no normalization 'none'. Accepted: coco,"),
        ({"width_px": 500, "height_px": 200}, "500x200 is invalid .* instance 512x192"),
        ({"width_px": 0}, "input.width_px|width_px: Input should be greater than 0"),
        ({"name": "My Model"}, "name: String should match pattern .* not 'My Model'"),
        ({"version": ""}, "version: String should match"),
        ({"classes": ()}, "classes: Tuple should have at least 1 item"),
        ({"classes": ("cat", "dog", "cat")}, r"repeated: \['cat'\]"),
        ({"classes": ("cat", "dog", " ")}, "classes.2"),
        ({"top_k": 0}, "top_k: Input should be greater than 0"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"width_px": 32, "height_px": 32, "top_k": 65}, "top-K is 65, .* only 64 cells"),
    ],
)
def test_invalid_configurations_are_rejected(
    slim_config: ExportConfig, slim_network: NetworkInfo, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_export(replace(slim_config, **change), slim_network)


def test_top_k_may_equal_the_number_of_cells(
    slim_config: ExportConfig, slim_network: NetworkInfo
) -> None:
    resolve_export(replace(slim_config, width_px=32, height_px=32, top_k=64), slim_network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "res_17"}, "there is no architecture 'res_17'. Accepted: res_18,"),
        ({"task": "segments"}, "there is no task 'segments'. Accepted: boxes, poses, boxes_3d"),
        ({"task": "corner_pairs"}, "res_18_slim does not support the task corner_pairs"),
        ({"top_k": 0}, "top_k: Input should be greater than 0"),
    ],
)
def test_an_invalid_configuration_leaves_no_files(
    slim_config: ExportConfig,
    slim_checkpoint: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export_package(replace(slim_config, **change), slim_checkpoint, tmp_path / "out", _ignore)
    assert caught.value.code == "config_invalid"
    assert list(tmp_path.iterdir()) == [slim_checkpoint]


def test_an_existing_output_is_not_modified(
    slim_config: ExportConfig, slim_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(PackageExistsError, match="exists already"):
        export_package(slim_config, slim_checkpoint, output, _ignore)
    assert list(output.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out", "slim.pth"}


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["absent", "bomb", "text", "other network", "other classes"])
def test_a_rejected_checkpoint_leaves_no_files(
    slim_config: ExportConfig, slim_state: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    checkpoint, planted = tmp_path / "model.pth", tmp_path / "planted"
    config = slim_config
    if kind == "bomb":
        torch.save({"state_dict": _Bomb(planted)}, checkpoint)
    elif kind == "text":
        checkpoint.write_text("Too many requests")
    elif kind != "absent":
        torch.save(slim_state, checkpoint)
    if kind == "other network":
        config = replace(config, architecture="res_34")
    if kind == "other classes":
        config = replace(config, classes=("cat", "dog"))
    with pytest.raises(CheckpointError):
        export_package(config, checkpoint, folder / "out", _ignore)
    assert list(folder.iterdir()) == []
    assert not planted.exists()


@pytest.mark.parametrize("error", [VerificationError("differs"), KeyboardInterrupt(), OSError(28)])
@pytest.mark.parametrize("stage", ["export_onnx", "verify_images"])
def test_a_failed_export_leaves_no_files(
    slim_config: ExportConfig,
    slim_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: BaseException,
) -> None:
    def export(*arguments: object) -> None:
        path = arguments[4]
        assert isinstance(path, Path)
        path.write_bytes(b"half a file")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "export_onnx", export)
    monkeypatch.setattr(pipeline, stage, fail)
    folder = tmp_path / "packages"
    folder.mkdir()
    with pytest.raises(type(error)):
        export_package(slim_config, slim_checkpoint, folder / "out", _ignore)
    assert list(folder.iterdir()) == []


def test_a_file_that_differs_from_the_network_is_not_published(
    slim_config: ExportConfig,
    slim_checkpoint: Path,
    slim_package: ModelPackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported = slim_package.path_of(slim_package.manifest.artifacts[0]).read_bytes()

    def export(graph: DetectionGraph, *arguments: object) -> None:
        path = arguments[3]
        assert isinstance(path, Path)
        path.write_bytes(exported)
        with torch.no_grad():
            graph.network.get_parameter("heads.heatmap.2.bias").add_(0.01)

    monkeypatch.setattr(pipeline, "export_onnx", export)
    steps: list[str] = []
    with pytest.raises(ExportError, match="scores differ by"):
        export_package(slim_config, slim_checkpoint, tmp_path / "out", steps.append)
    assert len(steps) == STEPS - 2  # stopped before the latency and the package
    assert {path.name for path in tmp_path.iterdir()} == {"slim.pth"}
