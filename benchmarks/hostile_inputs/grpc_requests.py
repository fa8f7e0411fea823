"""Requests over gRPC: messages of ModelInfer, and the HTTP/2 frames of a connection."""

import struct
import zlib
from random import Random

import numpy as np

from benchmarks.hostile_inputs.http2_frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    STREAM_WINDOW_BYTES,
    WINDOW_UPDATE,
    frame,
    message_prefix,
    rpc_headers,
)
from benchmarks.hostile_inputs.http_requests import JPEG
from benchmarks.hostile_inputs.mutations import mutate_some
from service.grpc.inference_pb2 import ModelInferRequest
from service.grpc.inference_service import to_request
from service.grpc.wire import parse_infer_request
from service.open_inference.tensors import read_files, read_images
from service.open_inference.types import BYTES, TensorMetadata

_MODELS = ("blood_cells", "blood_cells", "blood_cells.tensor", "nothing", "", "m" * 5000)
_SIDE = 512
_IMAGES = TensorMetadata("images", "UINT8", (-1, _SIDE, _SIDE, 3))
_FILES = TensorMetadata("image", BYTES, (-1,))
_MAX_IMAGES = 16
_MAX_BYTES = 4_000_000
_COUNTS = (0, 1, -1, 2, 17, 2**31, 2**62, -(2**63))

_METHODS = (
    *("ModelInfer",) * 6,
    *("ServerLive", "ServerReady", "ModelReady", "ModelMetadata", "ModelConfig"),
    *("ModelStatistics", "RepositoryIndex", "ModelStreamInfer", "TraceSetting", "Nothing"),
)
_WINDOW_BYTES = STREAM_WINDOW_BYTES - 5000


def check_message(data: bytes) -> None:
    """Read a message as the service does, for the model whose input it has.

    Raises :class:`service.errors.ServiceError`.
    """
    request = to_request(*parse_infer_request(data))
    for tensor in request.inputs:
        if tensor.name == _IMAGES.name:
            read_images(tensor, _IMAGES, _MAX_IMAGES)
        else:
            read_files(tensor, _FILES, _MAX_IMAGES)


def grpc_message(rng: Random) -> bytes:
    """Return the message of an inference request, true or false."""
    if rng.random() < 0.1:
        return rng.choice(_FLOODS)[:_MAX_BYTES]
    request = ModelInferRequest(model_name=rng.choice(_MODELS), id="i" * rng.choice((0, 9, 2000)))
    for _ in range(rng.choice((1,) * 12 + (0, 2, 40))):
        _add_input(rng, request)
    for _ in range(rng.choice((0, 0, 0, 1, 4, 3000))):
        request.outputs.add(name=rng.choice(("boxes", "scores", "x" * 3000)))
    for _ in range(rng.choice((0, 0, 0, 1, 5, 3000))):
        name = rng.choice(("score_threshold", "top_k", "timeout", "priority", f"p{rng.random()}"))
        parameter = request.parameters[name]
        setattr(parameter, *rng.choice(_PARAMETERS))
    return mutate_some(rng, request.SerializeToString()[:_MAX_BYTES])


_PARAMETERS = (
    *(("double_param", 0.5), ("double_param", float("nan")), ("int64_param", -(2**63))),
    *(("uint64_param", 2**64 - 1), ("bool_param", True), ("string_param", "9" * 3000)),
)
_FLOODS = (
    b"\x22\x00" * 2_000_000,  # parameters without a name
    b"\x2a\x00" * 2_000_000,  # inputs
    b"\x2a\x80\x80\x80\x01" + b"\x22\x00" * (1 << 20),  # parameters of an input
    b"\x3a\x00" * 2_000_000,  # empty raw contents
    b"\x0a\x01m" * 1_000_000,  # the name, again and again
    b"\x78\x01" * 2_000_000,  # a field that does not exist
    b"\xff" * 4_000_000,
    b"\x0b" * 4_000_000,  # groups that do not end
    b"\x2a\x85\x80\x80\x01\x2a\x81\x80\x80\x01" + b"\x01" * (2 << 20),
)


def _add_input(rng: Random, request: ModelInferRequest) -> None:
    if rng.random() < 0.3:
        tensor = request.inputs.add(name="images", datatype="UINT8")
        count = rng.choice((1, 1, 2))
        tensor.shape.extend([count, _SIDE, _SIDE, 3])
        data = bytes(count * _SIDE * _SIDE * 3)
        if rng.random() < 0.3:
            values = rng.choice((data, b"\xff" * len(data), data[:-1], data[:100]))
            tensor.contents.uint_contents.extend(np.frombuffer(values, np.uint8).tolist())
            data = b""
    else:
        count = rng.choice((1, 1, 1, 2, 16, 17, 1000))
        tensor = request.inputs.add(name="image", datatype="BYTES")
        tensor.shape.append(count)
        files = [rng.choice((JPEG, JPEG, b"", JPEG[:99])) for _ in range(count)]
        data = b"".join(struct.pack("<I", len(file)) + file for file in files)
        if rng.random() < 0.3:
            tensor.contents.bytes_contents.extend(files)
            data = b""
    if rng.random() < 0.2:
        del tensor.shape[:]
        tensor.shape.extend(rng.choices(_COUNTS, k=rng.choice((0, 1, 4, 2000))))
    if rng.random() < 0.1:
        tensor.datatype = rng.choice(("FP16", "BF16", "INT64", "", "X" * 3000))
    if rng.random() < 0.1:
        tensor.parameters["shared_memory_region"].string_param = "region"
    if rng.random() < 0.1 and data:
        size = struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1)))
        data = rng.choice((data[: len(data) // 2], data + b"1", size + data[4:]))
    if data or rng.random() < 0.05:
        request.raw_input_contents.append(data)


def grpc_frames(rng: Random) -> bytes:
    """Return the bytes of a connection, whose messages fit the initial windows of HTTP/2."""
    frames = [PREFACE + frame(SETTINGS, 0, 0, b"")]
    if rng.random() < 0.1:
        frames = [rng.choice((b"", PREFACE, PREFACE[:9], b"GET / HTTP/1.1\r\n\r\n"))]
    budget = _WINDOW_BYTES
    for stream in range(1, 2 * rng.choice((1, 1, 1, 2, 10, 200)), 2):
        message = grpc_message(rng)
        if len(message) > budget:
            message = _small_message()
        budget -= len(message) + 5
        frames.append(_rpc(rng, stream, message))
        if budget < 5000:
            break
    if rng.random() < 0.2:
        frames.append(rng.choice(_FRAMES) * rng.choice((1, 100, 5000)))
    return mutate_some(rng, b"".join(frames)[:_MAX_BYTES])


def ordinary_rpc() -> bytes:
    """Return the bytes of a connection with one inference request that must be answered."""
    message = _small_message()
    body = message_prefix(len(message)) + message
    headers = rpc_headers(b"/inference.GRPCInferenceService/ModelInfer", 1)
    return PREFACE + frame(SETTINGS, 0, 0, b"") + headers + frame(DATA, END_STREAM, 1, body)


def _small_message() -> bytes:
    request = ModelInferRequest(model_name="blood_cells")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(JPEG)
    return request.SerializeToString()


def _rpc(rng: Random, stream: int, message: bytes) -> bytes:
    """Return the frames of one RPC."""
    path = b"/inference.GRPCInferenceService/" + rng.choice(_METHODS).encode()
    fields: list[tuple[bytes, bytes]] = []
    is_compressed = rng.random() < 0.2
    if is_compressed:
        message = zlib.compress(message + bytes(rng.choice((0, 30_000_000))), 1)[:_WINDOW_BYTES]
        fields.append((b"grpc-encoding", rng.choice((b"deflate", b"deflate", b"gzip", b"x"))))
    if rng.random() < 0.3:
        fields.append(rng.choice(_FIELDS))
    size = len(message) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**32 - 1))
    body = message_prefix(size, is_compressed=is_compressed) + message
    frames = [rpc_headers(path, stream, fields)]
    step = rng.choice((16384, 16384, 1000, 100))
    for start in range(0, len(body), step):
        is_last = start + step >= len(body) and rng.random() < 0.9
        frames.append(frame(DATA, int(is_last), stream, body[start : start + step]))
    return b"".join(frames)


_FIELDS = (
    *((b"grpc-timeout", value) for value in (b"1n", b"50m", b"9" * 20 + b"H", b"x")),
    *((b"x" * size, b"y") for size in (10, 8000, 15_000)),
    *((b"authorization", b"Bearer " + b"k" * 3000), (b"x-request-id", b"\x7f" * 200)),
    *((b"x-forwarded-for", b"1.2.3.4, " * 500), (b"data-bin", b"!" * 500)),
    *((b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), (b"te", b"x")),
)


_FRAMES = (
    frame(PING, 0, 0, bytes(8)),
    frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31 - 1) * 100),
    frame(RST_STREAM, 0, 1, bytes(4)),
    frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)),
    frame(CONTINUATION, 0, 1, bytes(100)),
    frame(HEADERS, 0, 99, b"\0\x01a\x01b"),
    frame(200, 255, 2**31 - 1, bytes(1000)),
    frame(DATA, 0, 0, b"x"),
    b"\xff" * 9,
)
