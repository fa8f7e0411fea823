"""Weights under other keys, with a prefix, and in safetensors files."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model_export.checkpoints.safe_load import read_checkpoint, read_state
from model_export.checkpoints.weights_entries import common_prefix
from model_export.errors import CheckpointUnreadableError

WEIGHTS = {"conv1.weight": torch.arange(6.0), "hm.0.bias": torch.ones(3)}


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.model.", "detector.network."])
def test_a_prefix_of_all_names_is_removed(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: weight for name, weight in WEIGHTS.items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.6"}, tmp_path / "a.ckpt")
    weights = read_checkpoint(tmp_path / "a.ckpt")
    assert (list(weights.state), weights.prefix) == (list(WEIGHTS), prefix)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["a.b", "a.c"], "a."), (["a.b", "ab.c"], ""), (["a", "a.b"], ""), (["a.b"], ""), ([], "")],
)
def test_a_prefix_consists_of_whole_parts(names: list[str], prefix: str) -> None:
    assert common_prefix(names) == prefix


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        (["state_dict", "state_dict_ema"], "state_dict_ema"),
        (["state_dict", "ema_state_dict"], "state_dict"),
        (["model", "ema"], "ema"),
        (["unaveraged_state_dict", "state_dict"], "state_dict"),
        (["generator"], "generator"),
    ],
)
def test_averages_are_read_first_and_others_can_be_chosen(
    tmp_path: Path, keys: list[str], first: str
) -> None:
    path = tmp_path / "a.pth"
    content = {
        key: {name: weight + index for name, weight in WEIGHTS.items()}
        for index, key in enumerate(keys)
    }
    torch.save({"epoch": 3, **content}, path)
    assert read_checkpoint(path).entry == first
    for key, state in content.items():
        chosen = read_checkpoint(path, key)
        assert torch.equal(chosen.state["hm.0.bias"], state["hm.0.bias"])
        assert set(chosen.other_entries) == set(keys) - {key}
    with pytest.raises(CheckpointUnreadableError, match="no weights under 'epoch', only under"):
        read_checkpoint(path, "epoch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_files_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "model.safetensors"
    state = {f"model.{name}": weight.to(dtype) for name, weight in WEIGHTS.items()}
    save_file(state, path, {"format": "pt"})
    read = read_state(path)
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)
    assert all(weight.dtype == torch.float32 for weight in read.values())


def test_damaged_safetensors_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path)
    content = path.read_bytes()
    for damaged in (
        content[:-1],
        content[:30],
        content.replace(b"[0,24]", b"[0,99]"),
        struct.pack("<Q", 4_000_001) + content[8:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointUnreadableError, match="is a damaged safetensors file"):
            read_state(path)
