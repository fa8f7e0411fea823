"""Identification and strict loading of the upstream checkpoints."""

import json
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import State, without_counters

from model_export.architectures import ARCHITECTURES
from model_export.checkpoints.identify import expected_shapes, identify
from model_export.checkpoints.load_weights import load_network
from model_export.errors import CheckpointMismatchError
from model_export.key_mappings.objects_as_points import HEADS
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
    "exdet_dla_34": ("dla_34", "extreme_points"),
    "exdet_hourglass": ("hourglass", "extreme_points"),
    "multi_pose_res_18": ("res_18", "poses"),
    "ddd_res_18": ("res_18", "boxes_3d"),
}


def _meta_state(manifest: dict) -> State:
    """Meta tensors with the shapes of the manifest."""
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
def test_weights_rule_reproduces_the_upstream_fingerprint(
    name: str,
    weights_rule: types.ModuleType,
    upstream_state: Callable[[str], State],
    upstream: Path,
) -> None:
    arrays = {key: value.numpy() for key, value in upstream_state(name).items()}
    fingerprints = json.loads((upstream / "manifests" / "fingerprints.json").read_text())
    assert f"{weights_rule.fingerprint(arrays):08x}" == fingerprints[name]


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_upstream_tensor_is_loaded_or_known_as_unused(
    name: str, manifest_of: Callable[[str], dict]
) -> None:
    manifest = manifest_of(name)
    state = _meta_state(manifest)
    checkpoint_info = identify(state)
    assert (checkpoint_info.architecture, checkpoint_info.task) == UPSTREAM[name]
    assert checkpoint_info.head_channels == {
        HEADS[head]: channels for head, channels in manifest["heads"].items()
    }
    architecture = ARCHITECTURES[checkpoint_info.architecture]
    expected = expected_shapes(
        architecture, checkpoint_info.head_channels, checkpoint_info.head_hidden_channels
    )
    assert expected.keys() | set(checkpoint_info.unused) == state.keys()
    assert expected.keys().isdisjoint(checkpoint_info.unused)
    buffers = (".running_mean", ".running_var")
    parameters = [value for key, value in state.items() if not key.endswith(buffers)]
    assert sum(value.numel() for value in parameters) == manifest["num_params"]


@pytest.mark.parametrize("name", ["ctdet_res_18", "ctdet_resdcn_18", "multi_pose_dla_34"])
def test_load_network_copies_every_weight(
    name: str, upstream_state: Callable[[str], State]
) -> None:
    state = without_counters(upstream_state(name))
    checkpoint_info = identify(state)
    network = load_network(checkpoint_info, state)
    assert not network.training
    key_mapping = ARCHITECTURES[checkpoint_info.architecture].key_mapping
    loaded = without_counters(dict(network.state_dict()))
    assert len(loaded) == len(state) - len(checkpoint_info.unused)
    for key, weight in loaded.items():
        assert torch.equal(weight, state[key_mapping.to_checkpoint_key(key)]), key
        assert key_mapping.to_network_key(key_mapping.to_checkpoint_key(key)) == key


def test_unused_tensors_may_be_missing(manifest_of: Callable[[str], dict]) -> None:
    state = _meta_state(manifest_of("ctdet_dla_34"))
    unused = identify(state).unused
    assert {key.split(".")[1] for key in unused} == {"fc", "level3", "level4"}
    for key in unused:
        del state[key]
    assert identify(state).architecture == "dla_34"


@pytest.mark.parametrize(
    ("name", "head"), [("ctdet_res_18", "reg"), ("multi_pose_res_50", "hp_offset")]
)
def test_identifies_networks_without_an_optional_head(
    name: str, head: str, manifest_of: Callable[[str], dict]
) -> None:
    state = _meta_state(manifest_of(name))
    state = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
    checkpoint_info = identify(state)
    assert checkpoint_info.task == UPSTREAM[name][1]
    assert HEADS[head] not in checkpoint_info.head_channels


def test_identifies_other_hidden_channels(manifest_of: Callable[[str], dict]) -> None:
    state = _meta_state(manifest_of("ctdet_res_18"))
    for head in ("hm", "wh", "reg"):
        state[f"{head}.0.weight"] = torch.empty(128, 256, 3, 3, device="meta")
        state[f"{head}.0.bias"] = torch.empty(128, device="meta")
        out_channels = state[f"{head}.2.weight"].shape[0]
        state[f"{head}.2.weight"] = torch.empty(out_channels, 128, 1, 1, device="meta")
    checkpoint_info = identify(state)
    assert checkpoint_info.architecture == "res_18"
    assert set(checkpoint_info.head_hidden_channels.values()) == {128}


def test_identify_rejects_unknown_networks(state: State) -> None:
    del state["conv1.weight"]
    for unknown in ({}, state):
        with pytest.raises(CheckpointMismatchError):
            identify(unknown)


def _refusal(architecture: str, state: State, task: str = "boxes") -> str:
    with pytest.raises(CheckpointMismatchError) as caught:
        identify(state, architecture, task)
    assert caught.value.code == "checkpoint_mismatch"
    return str(caught.value)


def test_error_lists_every_kind_of_difference(state: State) -> None:
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
        f"None of {', '.join(ARCHITECTURES)} matches; the closest is res_18, which shares"
        in message
    )


def test_error_names_the_correct_architecture_and_task(state: State) -> None:
    correction = "It is a res_18 for boxes: export it with --arch res_18 --task boxes"
    assert correction in _refusal("res_50", state)
    assert correction in _refusal("res_18", state, task="poses")


def test_error_for_an_unknown_network_names_the_closest_one(state: State) -> None:
    prefixed = {f"model.{key}": weight for key, weight in state.items()}
    message = _refusal("res_18", prefixed)
    assert f"shares 0 of the checkpoint's {len(state)} tensors" in message


def test_control_sequences_in_names_are_escaped(state: State) -> None:
    state["\x1b[2J\n" + "a" * 1000] = torch.ones(1)
    message = _refusal("res_18", state)
    assert message.isprintable()
    assert len(message) < 1000


def test_every_task_has_an_architecture() -> None:
    named = {task for architecture in ARCHITECTURES.values() for task in architecture.tasks}
    assert named == TASKS.keys()
