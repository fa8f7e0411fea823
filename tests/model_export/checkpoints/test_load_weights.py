"""Every network of the authors loads to the last tensor; what does not fit is one clear error."""

import json
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import State, without_counters

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import expected_shapes, identify, recognise
from model_export.checkpoints.load_weights import load_network
from model_export.checkpoints.objects_as_points import HEADS
from model_export.errors import CheckpointMismatchError
from model_export.tasks import TASKS

UPSTREAM = {  # manifest: architecture, task
    "ctdet_res_18": ("res_18", "boxes"),
    "ctdet_res_34": ("res_34", "boxes"),
    "ctdet_res_50": ("res_50", "boxes"),
    "ctdet_res_101": ("res_101", "boxes"),
    "ctdet_resdcn_18": ("resdcn_18", "boxes"),
    "ctdet_resdcn_101": ("resdcn_101", "boxes"),
    "ctdet_dla_34": ("dla_34", "boxes"),
    "ctdet_dlav0_34": ("dlav0_34", "boxes"),
    "ctdet_hourglass": ("hourglass", "boxes"),
    "multi_pose_res_50": ("res_50", "poses"),
    "multi_pose_dla_34": ("dla_34", "poses"),
    "multi_pose_hourglass": ("hourglass", "poses"),
    "ddd_dla_34": ("dla_34", "boxes_3d"),
}


def _meta_state(manifest: dict) -> State:
    """Tensors of the right shapes, and nothing in them."""
    return without_counters(
        {
            key: torch.empty(shape, device="meta")
            for key, (shape, _) in manifest["state_dict"].items()
        }
    )


@pytest.fixture
def state(upstream_state: Callable[[str], State]) -> State:
    return without_counters(upstream_state("ctdet_res_18"))


@pytest.mark.parametrize("name", ["ctdet_res_18", "ctdet_resdcn_18", "multi_pose_dla_34"])
def test_the_weights_rule_makes_upstream_fingerprint(
    name: str,
    weights_rule: types.ModuleType,
    upstream_state: Callable[[str], State],
    upstream: Path,
) -> None:
    arrays = {key: value.numpy() for key, value in upstream_state(name).items()}
    fingerprints = json.loads((upstream / "manifests" / "fingerprints.json").read_text())
    assert f"{weights_rule.fingerprint(arrays):08x}" == fingerprints[name]


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_tensor_of_upstream_is_accounted_for(
    name: str, manifest_of: Callable[[str], dict]
) -> None:
    manifest = manifest_of(name)
    state = _meta_state(manifest)
    contents = identify(state)
    assert (contents.architecture, contents.task) == UPSTREAM[name]
    assert contents.head_channels == {
        HEADS[head]: channels for head, channels in manifest["heads"].items()
    }
    architecture = ARCHITECTURES[contents.architecture]
    expected = expected_shapes(architecture, contents.head_channels, contents.head_hidden_channels)
    assert expected.keys() | set(contents.unused) == state.keys()
    assert expected.keys().isdisjoint(contents.unused)
    buffers = (".running_mean", ".running_var")
    parameters = [value for key, value in state.items() if not key.endswith(buffers)]
    assert sum(value.numel() for value in parameters) == manifest["num_params"]


@pytest.mark.parametrize("name", ["ctdet_res_18", "ctdet_resdcn_18", "multi_pose_dla_34"])
def test_the_weights_arrive(name: str, upstream_state: Callable[[str], State]) -> None:
    state = without_counters(upstream_state(name))
    contents = identify(state)
    network = load_network(contents, state)
    assert not network.training
    layout = ARCHITECTURES[contents.architecture].layout
    loaded = without_counters(dict(network.state_dict()))
    assert len(loaded) == len(state) - len(contents.unused)
    for key, weight in loaded.items():
        assert torch.equal(weight, state[layout.to_checkpoint_key(key)]), key
        assert layout.to_network_key(layout.to_checkpoint_key(key)) == key


def test_what_inference_does_not_need_may_be_absent(manifest_of: Callable[[str], dict]) -> None:
    state = _meta_state(manifest_of("ctdet_dla_34"))
    unused = identify(state).unused
    assert {key.split(".")[1] for key in unused} == {"fc", "level3", "level4"}
    for key in unused:
        del state[key]
    assert identify(state).architecture == "dla_34"


@pytest.mark.parametrize(
    ("name", "head"), [("ctdet_res_18", "reg"), ("multi_pose_res_50", "hp_offset")]
)
def test_networks_without_an_optional_head_are_known(
    name: str, head: str, manifest_of: Callable[[str], dict]
) -> None:
    state = _meta_state(manifest_of(name))
    state = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
    contents = identify(state)
    assert contents.task == UPSTREAM[name][1]
    assert HEADS[head] not in contents.head_channels


def test_other_hidden_channels_of_heads_are_known(manifest_of: Callable[[str], dict]) -> None:
    state = _meta_state(manifest_of("ctdet_res_18"))
    for head in ("hm", "wh", "reg"):
        state[f"{head}.0.weight"] = torch.empty(128, 256, 3, 3, device="meta")
        state[f"{head}.0.bias"] = torch.empty(128, device="meta")
        out_channels = state[f"{head}.2.weight"].shape[0]
        state[f"{head}.2.weight"] = torch.empty(out_channels, 128, 1, 1, device="meta")
    contents = identify(state)
    assert (contents.architecture, contents.head_hidden_channels) == ("res_18", 128)


def test_recognises_no_stranger(state: State) -> None:
    assert recognise({}) is None
    del state["conv1.weight"]
    assert recognise(state) is None


def _refusal(architecture: str, state: State, task: str = "boxes") -> str:
    with pytest.raises(CheckpointMismatchError) as caught:
        identify(state, architecture, task)
    assert caught.value.code == "checkpoint_mismatch"
    return str(caught.value)


def test_every_kind_of_difference_is_told_at_once(state: State) -> None:
    for key in ("layer1.0.bn1.weight", "wh.0.bias", "wh.2.bias", "wh.2.weight"):
        del state[key]
    state["extra.weight"] = torch.ones(1)
    state["reg.2.weight"] = torch.ones(3, 64, 1, 1)
    message = _refusal("res_18", state)
    assert "4 missing (layer1.0.bn1.weight, " in message
    assert ", ...)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (reg.2.weight (3, 64, 1, 1) instead of (2, 64, 1, 1))" in message
    assert (
        f"None of {', '.join(ARCHITECTURES)} fits; the closest is res_18, which shares" in message
    )


def test_the_wrong_architecture_is_corrected(state: State) -> None:
    correction = "It is a res_18 for boxes: export it with --arch res_18 --task boxes"
    assert correction in _refusal("res_50", state)
    assert correction in _refusal("res_18", state, task="poses")


def test_a_network_of_another_family_is_told(state: State) -> None:
    stranger = {f"model.{key}": weight for key, weight in state.items()}
    message = _refusal("res_18", stranger)
    assert f"shares 0 of the checkpoint's {len(state)} tensors" in message


def test_names_in_a_message_cannot_play_with_the_terminal(state: State) -> None:
    state["\x1b[2J\n" + "a" * 1000] = torch.ones(1)
    message = _refusal("res_18", state)
    assert message.isprintable()
    assert len(message) < 1000


def test_every_task_has_an_architecture() -> None:
    named = {task for architecture in ARCHITECTURES.values() for task in architecture.tasks}
    assert named == TASKS.keys()
