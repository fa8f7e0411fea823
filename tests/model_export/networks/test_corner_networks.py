"""Corner models: mapping of the upstream checkpoint keys, and output shapes."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import identify
from model_export.errors import CheckpointMismatchError
from model_export.graph.corner_pairs import PAIR_HEADS, TRIPLET_HEADS
from model_export.key_mappings import corner_nets

NETWORKS = {
    "cornernet_hourglass52": PAIR_HEADS,
    "cornernet_hourglass104": PAIR_HEADS,
    "triplet_centernet52": TRIPLET_HEADS,
    "triplet_centernet104": TRIPLET_HEADS,
    "cornernet_squeeze": PAIR_HEADS,
    "cornernet_slim": PAIR_HEADS,
    "triplet_slim": TRIPLET_HEADS,
}
UPSTREAM_NETWORKS = [name for name in NETWORKS if name != "cornernet_hourglass52"]


def _build(name: str, classes: int = 80) -> nn.Module:
    channels = {name: head.count(classes, 0) for name, head in NETWORKS[name].items()}
    with torch.device("meta"):
        return ARCHITECTURES[name].build(channels)


def _checkpoint(name: str, classes: int = 80) -> dict[str, Tensor]:
    """Return the tensors that inference needs, under upstream keys."""
    to_checkpoint_key = ARCHITECTURES[name].key_mapping.to_checkpoint_key
    state = _build(name, classes).state_dict()
    return {
        to_checkpoint_key(key): value for key, value in state.items() if "num_batches" not in key
    }


@pytest.mark.parametrize("name", UPSTREAM_NETWORKS)
def test_every_upstream_tensor_is_mapped(upstream: Path, name: str) -> None:
    manifest = json.loads((upstream / "manifests" / f"{name}.json").read_text())
    shapes = {key: shape for key, (shape, _) in manifest["state_dict"].items()}
    key_mapping = ARCHITECTURES[name].key_mapping
    network = _build(name)
    unused = {key: shape for key, shape in shapes.items() if key_mapping.is_unused(key)}
    translated = {
        key_mapping.to_network_key(key): shape for key, shape in shapes.items() if key not in unused
    }
    assert translated == {key: list(value.shape) for key, value in network.state_dict().items()}
    for key in translated:
        assert key_mapping.to_network_key(key_mapping.to_checkpoint_key(key)) == key

    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    unused_parameters = sum(
        torch.Size(shape).numel() for key, shape in unused.items() if not key.endswith(statistics)
    )
    assert parameters + unused_parameters == manifest["num_params"]


def test_heads_of_earlier_stacks_are_unused() -> None:
    assert corner_nets.corner_keys(2).is_unused("tl_heats.0.1.bias")
    assert corner_nets.corner_keys(2).is_unused("ct_cnvs.0.p_bn1.running_mean")
    assert not corner_nets.corner_keys(2).is_unused("tl_heats.1.1.bias")
    assert not corner_nets.corner_keys(1).is_unused("tl_heats.0.1.bias")
    assert not corner_nets.corner_keys(2).is_unused("cnvs.0.conv.weight")
    assert corner_nets.corner_net_lite_keys(2).is_unused("tl_modules.0.p_bn1.running_mean")
    assert not corner_nets.corner_net_lite_keys(2).is_unused("tl_modules.1.p_bn1.running_mean")
    assert not corner_nets.corner_net_lite_keys(2).is_unused("hg.cnvs.0.conv.weight")


def test_heads_are_found_in_a_checkpoint() -> None:
    state = _checkpoint("triplet_centernet104", classes=20)
    heads = ARCHITECTURES["triplet_centernet104"].key_mapping.find_heads(state)
    assert heads.hidden_channels == dict.fromkeys(TRIPLET_HEADS, 256)
    assert heads.channels == {name: head.count(20, 0) for name, head in TRIPLET_HEADS.items()}


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("cornernet_hourglass52", "corner_pairs"),
        ("cornernet_squeeze", "corner_pairs"),
        ("triplet_centernet104", "corner_triplets"),
    ],
)
def test_corner_checkpoints_are_identified(name: str, task: str) -> None:
    checkpoint_info = identify(_checkpoint(name, classes=7))
    assert (checkpoint_info.architecture, checkpoint_info.task, checkpoint_info.num_classes) == (
        name,
        task,
        7,
    )


def test_cornernet_saccade_is_refused_by_name() -> None:
    """A part of its names; the others are those of the *CornerNet* in the same repository."""
    names = ("hg.pre.0.conv.weight", "tl_modules.2.bn1.weight", "att_modules.2.0.1.weight")
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(CheckpointMismatchError, match=r"is CornerNet-Saccade .* is not supported"):
        identify(state)
    del state["att_modules.2.0.1.weight"]
    with pytest.raises(CheckpointMismatchError, match="matches no known architecture"):
        identify(state)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cornernet_hourglass52", (32, 64)),
        ("triplet_centernet52", (32, 64)),
        ("cornernet_squeeze", (16, 32)),
    ],
)
def test_maps_have_the_input_size_divided_by_the_stride(name: str, size: tuple[int, int]) -> None:
    stride = ARCHITECTURES[name].output_stride
    assert size == (128 // stride, 256 // stride)
    with torch.device("meta"), torch.inference_mode():
        maps = _build(name, classes=3)(torch.empty(2, 3, 127, 255))
    assert {head: values.shape for head, values in maps.items()} == {
        head_name: (2, head.count(3, 0), *size) for head_name, head in NETWORKS[name].items()
    }
