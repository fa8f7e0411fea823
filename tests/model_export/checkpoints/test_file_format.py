"""Files that are not checkpoints are refused with what they are and what to do."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, save_model

from model_export.checkpoints.safe_load import read_state
from model_export.errors import CheckpointUnreadableError


def _write_onnx(path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Relu", ["x"], ["x"])
    save_model(helper.make_model(helper.make_graph([node], "g", [value], [value])), path)


def _write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


def _write_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.ones(3))


def _write_keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")


def _write_exported_program(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # torch.export takes seconds
        for name in ("archive_format", "models/model.json", "data/weights/weight_0"):
            archive.writestr(f"program/{name}", "pt2")


def _write_saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"\x08\x01")


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 80\n"


@pytest.mark.parametrize(
    ("name", "write", "kind", "advice"),
    [
        ("model.onnx", _write_onnx, "an ONNX file", "centernet-export import --onnx"),
        ("model.pth", _write_onnx, "an ONNX file", "centernet-export import --onnx"),
        ("model.engine", _bytes(b"\0" * 99), "an engine of TensorRT", "checkpoint that it was"),
        ("model", _write_saved_model, "a SavedModel of TensorFlow", "Only weights of PyTorch"),
        ("frozen.pb", _bytes(b"\x0a\x03abc"), "a file of TensorFlow", "Only weights of PyTorch"),
        ("a.pth", _bytes(b"\n<!DOCTYPE html><html>"), "an HTML page", "Download the checkpoint"),
        ("a.pth", _bytes(_POINTER), "a Git LFS pointer", "Run git lfs pull"),
        ("a.h5", _bytes(b"\x89HDF\r\n\x1a\n\0\0"), "an HDF5 file", "Only weights of PyTorch"),
        ("a.keras", _write_keras, "a model of Keras", "Only weights of PyTorch"),
        ("a.pt2", _write_exported_program, "a program of torch.export", "load(FILE).state_dict"),
        ("a.npz", _write_npz, "a NumPy archive", "Only weights of PyTorch"),
        ("a.tflite", _bytes(b"\x1c\0\0\0TFL3"), "a TensorFlow Lite model", "Only weights"),
        ("a.pth.tar", _write_tar, "a tar archive", "Unpack it"),
        ("a.pth.gz", _bytes(b"\x1f\x8b\x08\0"), "a file compressed with gzip", "Unpack it"),
    ],
)  # fmt: skip
def test_other_files_are_named(
    tmp_path: Path, name: str, write: Callable[[Path], None], kind: str, advice: str
) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(CheckpointUnreadableError) as caught:
        read_state(path)
    assert str(caught.value).startswith(f"{path} is {kind}")
    assert advice in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.engine", "model.pb"])
def test_a_checkpoint_with_a_misleading_name_is_read(tmp_path: Path, name: str) -> None:
    torch.save({"a.weight": torch.ones(2), "b.weight": torch.ones(2)}, tmp_path / name)
    assert list(read_state(tmp_path / name)) == ["a.weight", "b.weight"]
