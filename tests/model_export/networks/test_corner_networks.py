"""The corner systems' networks: every tensor of the upstream checkpoints has its place."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints import corner_nets
from model_export.checkpoints.identify import identify
from model_export.graph.corner_pairs import PAIR_HEADS, TRIPLET_HEADS

NETWORKS = {
    "cornernet_hourglass52": PAIR_HEADS,
    "cornernet_hourglass104": PAIR_HEADS,
    "triplet_centernet52": TRIPLET_HEADS,
    "triplet_centernet104": TRIPLET_HEADS,
}
UPSTREAM_NETWORKS = [name for name in NETWORKS if name != "cornernet_hourglass52"]


def _build(name: str, classes: int = 80) -> nn.Module:
    channels = {head: facts.count(classes, 0) for head, facts in NETWORKS[name].items()}
    with torch.device("meta"):
        return ARCHITECTURES[name].build(channels)


def _checkpoint(name: str, classes: int = 80) -> dict[str, Tensor]:
    """Shapes of what inference needs, under the upstream names."""
    to_checkpoint_key = ARCHITECTURES[name].layout.to_checkpoint_key
    state = _build(name, classes).state_dict()
    return {
        to_checkpoint_key(key): value for key, value in state.items() if "num_batches" not in key
    }


@pytest.mark.parametrize("name", UPSTREAM_NETWORKS)
def test_every_tensor_of_upstream_has_its_place(upstream: Path, name: str) -> None:
    manifest = json.loads((upstream / "manifests" / f"{name}.json").read_text())
    shapes = {key: shape for key, (shape, _) in manifest["state_dict"].items()}
    layout = ARCHITECTURES[name].layout
    network = _build(name)
    unused = {key: shape for key, shape in shapes.items() if layout.is_unused(key)}
    translated = {
        layout.to_network_key(key): shape for key, shape in shapes.items() if key not in unused
    }
    assert translated == {key: list(value.shape) for key, value in network.state_dict().items()}
    for key in translated:
        assert layout.to_network_key(layout.to_checkpoint_key(key)) == key

    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    unused_parameters = sum(
        torch.Size(shape).numel() for key, shape in unused.items() if not key.endswith(statistics)
    )
    assert parameters + unused_parameters == manifest["num_params"]


def test_what_earlier_stacks_predict_is_unused() -> None:
    assert corner_nets.layout(2).is_unused("tl_heats.0.1.bias")
    assert corner_nets.layout(2).is_unused("ct_cnvs.0.p_bn1.running_mean")
    assert not corner_nets.layout(2).is_unused("tl_heats.1.1.bias")
    assert not corner_nets.layout(1).is_unused("tl_heats.0.1.bias")
    assert not corner_nets.layout(2).is_unused("cnvs.0.conv.weight")


def test_heads_are_found_in_a_checkpoint() -> None:
    state = _checkpoint("triplet_centernet104", classes=20)
    heads = ARCHITECTURES["triplet_centernet104"].layout.find_heads(state)
    assert heads.hidden_channels == 256
    assert heads.channels == {name: head.count(20, 0) for name, head in TRIPLET_HEADS.items()}


@pytest.mark.parametrize(
    ("name", "task"),
    [("cornernet_hourglass52", "corner_pairs"), ("triplet_centernet104", "corner_triplets")],
)
def test_checkpoints_are_recognised(name: str, task: str) -> None:
    contents = identify(_checkpoint(name, classes=7))
    assert (contents.architecture, contents.task, contents.num_classes) == (name, task, 7)


@pytest.mark.parametrize("name", ["cornernet_hourglass52", "triplet_centernet52"])
def test_maps_have_a_quarter_of_the_inputs_size(name: str) -> None:
    with torch.device("meta"), torch.inference_mode():
        maps = _build(name, classes=3)(torch.empty(2, 3, 127, 255))
    assert {head: values.shape for head, values in maps.items()} == {
        head: (2, facts.count(3, 0), 32, 64) for head, facts in NETWORKS[name].items()
    }
