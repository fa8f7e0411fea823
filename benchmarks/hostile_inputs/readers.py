"""Functions that read an input as the service and ``centernet-export`` do."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.hostile_inputs.bmp import bmp_file
from benchmarks.hostile_inputs.bounds import Reading
from benchmarks.hostile_inputs.jpeg import jpeg_file
from benchmarks.hostile_inputs.manifests import manifest_file
from benchmarks.hostile_inputs.png import png_file
from benchmarks.hostile_inputs.webp import webp_file
from model_package.directory import MANIFEST_FILE, read_manifest
from model_package.errors import PackageError
from service.errors import ServiceError
from service.imaging.image_decoding import open_image
from service.settings import Settings

ACCEPTED = "accepted"
Reader = Callable[[bytes], Reading]


class Kind(NamedTuple):
    """A kind of input: its generator and its reader."""

    generate: Callable[[Random], bytes]
    read: Reader


def kind_of(name: str) -> Kind:
    """Return the kind ``name``; torch and onnx are imported only for those that need them."""
    if name == "checkpoint":
        from benchmarks.hostile_inputs.checkpoints import checkpoint_file

        return Kind(checkpoint_file, _checkpoint_reader())
    if name == "onnx":
        from benchmarks.hostile_inputs.onnx_files import onnx_file

        return Kind(onnx_file, _onnx_reader())
    return _KINDS[name]


def read_image(body: bytes) -> Reading:
    """Read the header, which the service does in its event loop, then decode the pixels."""
    settings = Settings()
    memory_bytes = cpu_s = 0.0
    began_at = time.thread_time()
    event_loop_s = None
    try:
        image = open_image(body, settings.max_image_pixels)
        event_loop_s = time.thread_time() - began_at
        memory_bytes, cpu_s = image.cost.memory_bytes, image.cost.cpu_s
        if memory_bytes > settings.max_decoding_bytes:  # refused by ImagePool
            return Reading("over max_decoding_bytes", event_loop_s=event_loop_s)
        pixels = image.decode().pixels
        assert pixels.shape == (image.height_px, image.width_px, 3), pixels.shape
        outcome = ACCEPTED
    except ServiceError as error:
        if error.status >= 500:
            raise
        outcome = error.code
    if event_loop_s is None:
        event_loop_s = time.thread_time() - began_at
    return Reading(outcome, memory_bytes, cpu_s, event_loop_s)


def _read_manifest(body: bytes) -> Reading:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, MANIFEST_FILE).write_bytes(body)
        try:
            read_manifest(Path(folder))
        except PackageError as error:
            return _refusal(error)
    return Reading(ACCEPTED)


def _checkpoint_reader() -> Reader:
    from model_export.checkpoints import safe_load
    from model_export.errors import CheckpointError
    from model_export.inspect_checkpoint import inspect_checkpoint

    def read(body: bytes) -> Reading:
        stated_bytes = safe_load.MEMORY_MARGIN_BYTES + len(body) * (
            safe_load.MEMORY_PER_BYTE + safe_load.MAX_FLOAT32_PER_BYTE
        )
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            file.write(body)
            file.flush()
            try:
                inspect_checkpoint(Path(file.name))
            except CheckpointError as error:
                return _refusal(error, stated_bytes)
        return Reading(ACCEPTED, stated_bytes)

    return read


def _onnx_reader() -> Reader:
    from model_export.errors import ExportError
    from model_export.onnx.external_model import read_external_model

    def read(body: bytes) -> Reading:
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(body)
            file.flush()
            try:
                read_external_model(Path(file.name))
            except ExportError as error:
                return _refusal(error)
        return Reading(ACCEPTED)

    return read


MAX_MESSAGE_CHARACTERS = 3000


def _refusal(error: Exception, stated_bytes: float = 0) -> Reading:
    message = str(error)
    assert len(message) <= MAX_MESSAGE_CHARACTERS, f"a message of {len(message)} characters"
    return Reading(type(error).__name__, stated_bytes)


_KINDS = {
    "jpeg": Kind(jpeg_file, read_image),
    "png": Kind(png_file, read_image),
    "webp": Kind(webp_file, read_image),
    "bmp": Kind(bmp_file, read_image),
    "manifest": Kind(manifest_file, _read_manifest),
}
IMAGE_KINDS = ("jpeg", "png", "webp", "bmp")
FILE_KINDS = (*_KINDS, "checkpoint", "onnx")

if sys.platform != "linux":
    raise SystemExit("the measurements read /proc, which only Linux has")
