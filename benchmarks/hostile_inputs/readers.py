"""Functions that read an input as the service and ``centernet-export`` do."""

import sys
import tempfile
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.hostile_inputs.bmp import bmp_file
from benchmarks.hostile_inputs.bounds import Reading
from benchmarks.hostile_inputs.gif import gif_file
from benchmarks.hostile_inputs.heif import avif_file, heic_file
from benchmarks.hostile_inputs.jpeg import jpeg_file
from benchmarks.hostile_inputs.manifests import manifest_file
from benchmarks.hostile_inputs.png import png_file
from benchmarks.hostile_inputs.tiff import tiff_file
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
    """Return the kind ``name``; torch, onnx and protobuf are imported only where needed."""
    if name == "checkpoint":
        from benchmarks.hostile_inputs.checkpoints import checkpoint_file

        return Kind(checkpoint_file, _checkpoint_reader())
    if name == "onnx":
        from benchmarks.hostile_inputs.onnx_files import onnx_file

        return Kind(onnx_file, _onnx_reader())
    if name == "grpc_message":
        from benchmarks.hostile_inputs.grpc_requests import check_message, grpc_message

        return Kind(grpc_message, request_reader(check_message))
    return _KINDS[name]


def request_reader(read_request: Callable[[bytes], None]) -> Reader:
    """Return a reader of requests in the event loop; errors of the service refuse them."""

    def read(body: bytes) -> Reading:
        began_at = time.thread_time()
        outcome = ACCEPTED
        try:
            read_request(body)
        except ServiceError as error:
            if error.status >= 500 and error.status != HTTPStatus.NOT_IMPLEMENTED:
                raise
            outcome, length = error.code, len(error.detail)
            assert length <= MAX_MESSAGE_CHARACTERS, f"a message of {length} characters"
        return Reading(outcome, event_loop_s=time.thread_time() - began_at)

    return read


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


def _read_manifest(path: Path) -> None:
    read_manifest(path.parent)


def _checkpoint_reader() -> Reader:
    from benchmarks.hostile_inputs.checkpoints import calls
    from model_export.checkpoints import safe_load
    from model_export.errors import CheckpointError
    from model_export.inspect_checkpoint import inspect_checkpoint

    def inspect(path: Path) -> None:
        try:
            inspect_checkpoint(path)
        finally:
            assert not calls, f"the checkpoint was executed: {calls}"

    bytes_per_byte = safe_load.MEMORY_PER_BYTE + safe_load.MAX_FLOAT32_PER_BYTE
    return file_reader(
        inspect,
        CheckpointError,
        lambda size: safe_load.MEMORY_MARGIN_BYTES + size * bytes_per_byte,
    )


def _onnx_reader() -> Reader:
    from model_export.errors import ExportError
    from model_export.onnx.external_model import read_external_model

    return file_reader(read_external_model, ExportError)


MAX_MESSAGE_CHARACTERS = 3000


def file_reader(
    read_file: Callable[[Path], object],
    refusal: type[Exception],
    stated_bytes: Callable[[int], int] = lambda _: 0,
) -> Reader:
    """Return a reader that writes the input to a file, and expects errors of type ``refusal``.

    ``stated_bytes``: the stated memory for a file of that size.
    """

    def read(body: bytes) -> Reading:
        outcome = ACCEPTED
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, MANIFEST_FILE)
            path.write_bytes(body)
            try:
                read_file(path)
            except refusal as error:
                outcome, length = type(error).__name__, len(str(error))
                assert length <= MAX_MESSAGE_CHARACTERS, f"a message of {length} characters"
        return Reading(outcome, stated_bytes(len(body)))

    return read


_KINDS = {
    "jpeg": Kind(jpeg_file, read_image),
    "png": Kind(png_file, read_image),
    "webp": Kind(webp_file, read_image),
    "bmp": Kind(bmp_file, read_image),
    "gif": Kind(gif_file, read_image),
    "tiff": Kind(tiff_file, read_image),
    "avif": Kind(avif_file, read_image),
    "heic": Kind(heic_file, read_image),
    "manifest": Kind(manifest_file, file_reader(_read_manifest, PackageError)),
}
IMAGE_KINDS = ("jpeg", "png", "webp", "bmp", "gif", "tiff", "avif", "heic")
FILE_KINDS = (*_KINDS, "checkpoint", "onnx", "grpc_message")

if sys.platform != "linux":
    raise SystemExit("the measurements read /proc, which only Linux has")
