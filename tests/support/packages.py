"""Packages of several versions of a model, whose detections tell which version made them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from model_package import InputSpec
from model_package.directory import sha256_of
from support.constant_model import write_constant_package
from support.images import encode, plain
from support.serving import BOXES, TOP_K

IMAGE = encode(plain(1, 2))


def write_version(
    directory: Path, version: str, *, name: str = "cells", score: float = 0.5
) -> Path:
    """Publish a package of one class whose best detection has this score in every image."""
    rows = {
        "scores": score - np.arange(TOP_K, dtype=np.float32) / 100,
        "class_ids": np.zeros(TOP_K, np.int32),
        "centers": np.full((TOP_K, 2), 8, np.float32),
        "sizes": np.full((TOP_K, 2), 4, np.float32),
    }
    write_constant_package(directory, rows, BOXES, InputSpec(width_px=64, height_px=64))
    edit_manifest(directory, {"name": name, "version": version})
    return directory


def edit_manifest(package: Path, fields: dict[str, Any]) -> None:
    """Change fields of ``model.json``."""
    path = package / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut_manifest(package: Path) -> None:
    """Remove the end of ``model.json``."""
    path = package / "model.json"
    path.write_bytes(path.read_bytes()[:-9])


def change_file(package: Path) -> None:
    """Change one byte of the ONNX file."""
    path = package / "model.onnx"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def replace_file(package: Path) -> None:
    """Replace the ONNX file with one that no runtime can read; size and digest are right."""
    path = package / "model.onnx"
    path.write_bytes(bytes(100))
    (artifact,) = json.loads((package / "model.json").read_text())["artifacts"]
    artifact |= {"sha256": sha256_of(path), "size_bytes": 100}
    edit_manifest(package, {"artifacts": [artifact]})


def change_outputs(package: Path) -> None:
    """State outputs in ``model.json`` that the ONNX file does not have."""
    decoder = json.loads((package / "model.json").read_text())["decoder"]
    edit_manifest(package, {"decoder": decoder | {"top_k": 77}})
