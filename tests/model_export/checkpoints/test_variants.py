"""Numbers of layers and channels that the names and shapes of a checkpoint determine."""

import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import State, without_counters
from torch import nn

from model_export.architectures import (
    ARCHITECTURES,
    Architecture,
    HourglassArchitecture,
    ResNetArchitecture,
    box_head_channels,
)
from model_export.checkpoints.identify import CheckpointInfo, identify
from model_export.cli import main
from model_export.config import ExportConfig
from model_export.errors import CheckpointMismatchError
from model_export.pipeline import export_package

HEADS = box_head_channels(3)


def _resnet(name: str, *channels: int) -> ResNetArchitecture:
    architecture = ARCHITECTURES[name]
    assert isinstance(architecture, ResNetArchitecture)
    return replace(architecture, neck_channels=channels)


def _hourglass(name: str, stacks: int) -> HourglassArchitecture:
    architecture = ARCHITECTURES[name]
    assert isinstance(architecture, HourglassArchitecture)
    return replace(architecture, stacks=stacks)


def _state(architecture: Architecture, hidden_channels: dict[str, int] | None = None) -> State:
    """Return the shapes of a network with the names of its checkpoints."""
    with torch.device("meta"):
        network = architecture.build(HEADS, hidden_channels)
    key = architecture.key_mapping.to_checkpoint_key
    return without_counters({key(name): weight for name, weight in network.state_dict().items()})


def _output_stride(network: nn.Module) -> float:
    maps = network(torch.empty(1, 3, 128, 128, device="meta"))
    return 128 / maps["size"].shape[3]


def _build(info: CheckpointInfo) -> nn.Module:
    with torch.device("meta"):
        return info.variant.build(info.head_channels, info.head_hidden_channels).eval()


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [
        ("res_18_slim", (96, 48, 32), 4),
        ("res_18_slim", (48, 32), 8),
        ("res_18_slim", (64, 48, 32, 16), 2),
        ("resdcn_18", (256, 256, 256), 4),
        ("resdcn_18", (128, 64), 8),
        ("mmdet_centernet_r18", (128, 128, 64), 4),
        ("mmdet_centernet_r18_dcnv2", (256, 128, 64, 32), 2),
    ],
)
def test_transposed_convolutions_are_those_of_the_file(
    name: str, channels: tuple[int, ...], stride: int
) -> None:
    architecture = _resnet(name, *channels)
    for chosen in (None, name):
        info = identify(_state(architecture), chosen)
        assert (info.architecture, info.variant) == (name, architecture)
        assert info.variant.output_stride == stride == _output_stride(_build(info))


@pytest.mark.parametrize(
    ("name", "stacks"),
    [("hourglass", 1), ("hourglass_slim", 1), ("hourglass_slim", 3), ("hourglass_tiny", 2)],
)
def test_stacks_are_those_of_the_file(name: str, stacks: int) -> None:
    architecture = _hourglass(name, stacks)
    info = identify(_state(architecture))
    assert (info.architecture, info.variant) == (name, architecture)
    assert _output_stride(_build(info)) == info.variant.output_stride == 4


@pytest.mark.parametrize(
    "hidden_channels",
    [
        dict.fromkeys(HEADS, 256),
        dict.fromkeys(HEADS, 0),
        {"heatmap": 128, "size": 32, "offset": 0},
    ],
    ids=["wide", "none", "different"],
)
@pytest.mark.parametrize("name", ["res_18_slim", "dla_34"])
def test_hidden_channels_of_heads_are_those_of_the_file(
    name: str, hidden_channels: dict[str, int]
) -> None:
    state = _state(ARCHITECTURES[name], hidden_channels)
    assert ("hm.weight" in state) == (hidden_channels["heatmap"] == 0)
    info = identify(state)
    assert (info.architecture, info.head_channels) == (name, HEADS)
    assert info.head_hidden_channels == hidden_channels


def test_known_networks_are_not_described_as_variants() -> None:
    for name in ("res_18", "resdcn_18", "hourglass_slim", "mmdet_centernet_r18"):
        assert identify(_state(ARCHITECTURES[name])).variant == ARCHITECTURES[name]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_state(_resnet("res_18_slim", 64)), r"missing \(deconv_layers\.3\."),
        (_state(_resnet("res_18_slim", *[64] * 5)), r"unexpected \(deconv_layers\.9\."),
        (
            {
                **_state(ARCHITECTURES["res_18_slim"]),
                "deconv_layers.3.weight": torch.empty(64, 64, 2, 2),
            },
            r"deconv_layers\.3\.weight \(64, 64, 2, 2\) instead of \(64, 64, 4, 4\)",
        ),
        (_state(_hourglass("hourglass_slim", 5)), r"unexpected \(kps\.2\."),
        (
            {
                key: weight
                for key, weight in _state(ARCHITECTURES["res_18_slim"]).items()
                if key != "hm.0.weight"
            },
            r"1 missing \(hm\.0\.weight\)",
        ),
    ],
    ids=["one deconvolution", "five", "kernel", "five stacks", "missing"],
)
def test_what_is_not_determined_is_refused_with_what_was_found(state: State, message: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=message):
        identify(state)


@pytest.fixture(scope="module")
def variant_state(weights_rule: types.ModuleType) -> State:
    """A res_18_slim of output stride 8 whose heads are single convolutions."""
    shapes = _state(_resnet("res_18_slim", 48, 32), dict.fromkeys(HEADS, 0))
    # The rule knows the last layer of a head as `.2`.
    renamed = {
        f"{head}.2.{parameter}": f"{head}.{parameter}"
        for head in ("hm", "wh", "reg")
        for parameter in ("weight", "bias")
    }
    original = {new: old for old, new in renamed.items()}
    manifest = {
        original.get(key, key): [list(weight.shape), "torch.float32"]
        for key, weight in shapes.items()
    }
    arrays = weights_rule.make_state(manifest, tab=weights_rule.TABLE["ctdet_res_18"])
    return {renamed.get(key, key): torch.from_numpy(array) for key, array in arrays.items()}


@pytest.mark.slow
def test_a_variant_is_exported_with_its_output_stride(
    variant_state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pth"
    torch.save(variant_state, path)
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr().out
    assert "heads: heatmap 3, size 2, offset 2; no hidden channels" in output
    assert "variant: neck channels (48, 32) instead of (64, 64, 64); output stride 8" in output
    config = ExportConfig(
        name="variant",
        version="1",
        classes=("circle", "square", "triangle"),
        width_px=160,
        height_px=96,
        top_k=50,
        precision="fp16",
    )
    manifest = export_package(config, path, tmp_path / "package", lambda _: None).manifest
    assert manifest.decoder.output_stride == 8
    assert manifest.verification.matched_fraction > 0.99
    assert {artifact.precision for artifact in manifest.artifacts} == {"fp32", "fp16"}
