"""Backbones of timm: which are accepted, their checkpoints, and exports without options."""

import builtins
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import write_config
from support.timm_models import require_timm

from model_export.architectures import box_head_channels, find_architecture
from model_export.checkpoints.identify import identify
from model_export.checkpoints.safe_load import read_checkpoint
from model_export.config import ExportConfig
from model_export.errors import ConfigError
from model_export.inspect_checkpoint import inspect_checkpoint
from model_export.networks import timm_backbone
from model_export.pipeline import export_package
from training.config import TrainConfig
from training.trainer import Trainer

SMALL = "timm/mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def timm() -> None:
    require_timm()


@pytest.mark.parametrize(
    "model", ["mobilenetv2_035", "efficientnet_lite0", "convnext_atto", "vgg11"]
)
def test_maps_have_the_stride_of_the_output(model: str) -> None:
    with torch.device("meta"):
        network = find_architecture(f"timm/{model}").build(box_head_channels(3))
        maps = network(torch.zeros(2, 3, 64, 96))
    assert {name: tuple(values.shape) for name, values in maps.items()} == {
        "heatmap": (2, 3, 16, 24),
        "size": (2, 2, 16, 24),
        "offset": (2, 2, 16, 24),
    }
    assert (len(network.neck.upsampling), list(network.neck.lateral)) == (3, ["0", "1", "2"])


def test_every_feature_map_reaches_the_output() -> None:
    torch.manual_seed(3)
    network = find_architecture(SMALL).build(box_head_channels(3)).eval()
    maps = network.backbone(torch.rand(1, 3, 64, 96))
    output = network.neck(maps)
    assert len(maps) == 4  # strides 4, 8, 16 and 32
    for index, values in enumerate(maps):
        changed = [*maps[:index], values + 1, *maps[index + 1 :]]
        assert not torch.equal(network.neck(changed), output), index


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/mobilenet_v9", "has no model 'mobilenet_v9'"),
        ("timm/mobilenetv3_large_100.ra_in1k", "without a tag of pretrained weights"),
        ("timm/hf-hub:someone/model", "has no model 'hf-hub:someone/model'"),
        ("timm/local-dir:/tmp", "has no model 'local-dir:/tmp'"),
        ("timm/vit_tiny_patch16_224", "cannot be a backbone"),
        ("timm/inception_v3", r"feature map of a 128x96 input is \(1, 2048, 1, 2\)"),
        ("mobilenetv3_large_100", "there is no architecture 'mobilenetv3_large_100'"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_architecture(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module", name="timm"), r"pip install 'centernet-serving\[timm\]'"),
        (RuntimeError("operator torchvision::nms does not exist"), "built for the installed"),
    ],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "timm":
            raise error
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    timm_backbone.timm_features.cache_clear()
    with pytest.raises(ConfigError, match=message):
        find_architecture(SMALL)


@pytest.mark.slow
def test_a_checkpoint_is_exported_without_options(tmp_path: Path) -> None:
    config = write_config(tmp_path, SMALL, "boxes")
    Trainer(config, tmp_path / "run").run()
    checkpoint = tmp_path / "run/best.pth"

    description, fits = inspect_checkpoint(checkpoint)
    assert fits
    assert f"{SMALL} for boxes" in description
    assert f"classes {', '.join(config.classes)}; input 128x128, coco" in description

    package = export_package(
        ExportConfig(name="small", version="1", precision="fp16"),
        checkpoint,
        tmp_path / "package",
        lambda _: None,
    )
    manifest = package.manifest
    assert manifest.provenance.architecture == SMALL
    assert manifest.classes == config.classes
    assert (manifest.input.width_px, manifest.input.height_px) == (128, 128)
    assert [artifact.precision for artifact in manifest.artifacts] == ["fp32", "fp16"]


def test_a_record_of_another_network_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, SMALL, "boxes")
    trainer = Trainer(config, tmp_path / "run")
    path = tmp_path / "weights.pth"
    trainer._save(path, with_optimizer=False)
    content = torch.load(path, weights_only=True)
    record = json.loads(content["config"])
    for name, message in (
        ("timm/hf-hub:someone/model", "has no model"),
        ("res_18_slim", "not a res_18_slim"),
    ):
        torch.save(content | {"config": json.dumps(record | {"architecture": name})}, path)
        with pytest.raises(Exception, match=message):
            export_package(
                ExportConfig(name="a", version="1"), path, tmp_path / "package", lambda _: None
            )


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"architecture": 3}', "x" * (2 * 1024**2)])
def test_a_record_of_another_program_is_ignored(tmp_path: Path, text: str) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "config": text}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").record is None


@pytest.mark.parametrize("model", ["mobilenetv3_small_050", "convnext_atto"])
def test_training_starts_from_weights_of_timm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    timm = importlib.import_module("timm")
    torch.manual_seed(5)
    classifier = timm.create_model(model, pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "timm.pth")
    config = write_config(tmp_path, f"timm/{model}", "boxes")
    trainer = Trainer(config.model_copy(update={"start": tmp_path / "timm.pth"}), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "newly initialized: neck.upsampling.0.0.weight" in printed
    assert "backbone" not in printed
    stem = {"mobilenetv3_small_050": "conv_stem.weight", "convnext_atto": "stem.0.weight"}[model]
    first = next(trainer.network.backbone.parameters())
    torch.testing.assert_close(first, classifier.state_dict()[stem], rtol=0, atol=0)
    trainer._save(tmp_path / "saved.pth", with_optimizer=False)
    state = read_checkpoint(tmp_path / "saved.pth").state
    assert identify(state, f"timm/{model}").differences.count() == 0


def test_a_config_names_the_reason(tmp_path: Path) -> None:
    config = write_config(tmp_path, SMALL, "boxes").model_dump(mode="json")
    with pytest.raises(ValueError, match="has no model 'mobilenet_v9'"):
        TrainConfig.model_validate(config | {"architecture": "timm/mobilenet_v9"})
