"""Inference requests of the Open Inference Protocol, with true and false lengths and values."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from benchmarks.hostile_inputs.http_requests import JPEG, request_head
from benchmarks.hostile_inputs.mutations import mutate_some
from service.open_inference.parameters import SCHEDULING_PARAMETERS
from service.options import DetectParameters

MODEL, SIDE_PX = b"blood_cells", 512
"""The served model, and the sides of its input."""
_MAX_BYTES = 4_000_000
_PIXELS = bytes(SIDE_PX * SIDE_PX * 3)
_LENGTHS = (0, 1, 3, 4, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_SIZES = (*(-1, 0, 1, 2**31, 2**63, 10**30), *(1.5, "5", True, None, [], {}))
_NAMES = (*DetectParameters.model_fields, *SCHEDULING_PARAMETERS, "binary_data_output", "x" * 5000)
_VALUES: tuple[Any, ...] = (
    *(0.5, 1, -1, 0, True, "0.5,1", "RBC", "", None, [0.5, 1], [], {}, 10**400, "9" * 5000),
    *("," * 20_000, ["RBC"] * 20_000, [[[]]] * 300),
)


def open_inference(rng: Random) -> bytes:
    """Return an inference request for either form of a model."""
    is_tensor = rng.random() < 0.4
    document, data = _document(rng, is_tensor)
    text = rng.choice((*(_dump(document),) * 50, *_FLOODS))
    text = mutate_some(rng, text[:_MAX_BYTES])
    body = text + data
    length = b"%d" % len(text)
    if rng.random() < 0.1:
        length = rng.choice((b"0", b"-1", b"%d" % (len(text) + 1), b"9" * 50, b"1e3", b""))
    fields = [b"Inference-Header-Content-Length: " + length]
    if not data or rng.random() < 0.05:
        fields = []
    if rng.random() < 0.3:
        encoding, body = _compress(rng, body)
        fields.append(b"Content-Encoding: " + encoding)
    if rng.random() < 0.2:
        fields.append(b"Accept-Encoding: " + rng.choice((b"gzip", b"deflate, br", b"*, " * 900)))
    fields.append(b"Content-Length: %d" % len(body))
    path = b"/v2/models/" + MODEL + (b".tensor" if is_tensor else b"") + b"/infer"
    if rng.random() < 0.05:
        path = rng.choice((b"/v2/repository/index", b"/v2/models//infer", b"/v2/models/x/infer"))
    return request_head(rng, b"POST", path, fields) + body


def _document(rng: Random, is_tensor: bool) -> tuple[dict[str, Any], bytes]:
    """Return the JSON of a request, and the binary data after it."""
    data = _pixels(rng) if is_tensor else _files(rng)
    name, datatype = ("images", "UINT8") if is_tensor else ("image", "BYTES")
    count = _one(rng, 1, *(2, 17, 0, -1, 2**31, 10**30, "1", None))
    tensor = {
        "name": _one(rng, name, "other", "n" * 5000, 5),
        "datatype": _one(rng, datatype, "FP64", "", 5),
        "shape": [count, SIDE_PX, SIDE_PX, 3] if is_tensor else [count],
        "parameters": {"binary_data_size": _one(rng, len(data), len(data) + 1, *_SIZES)},
    }
    if rng.random() < 0.1:
        tensor["shape"] = rng.choice(([], [1] * 50_000, [[1]], "1", 1, [2**62, 2**62]))
    if rng.random() < 0.1:
        del tensor["parameters"]
        tensor["data"] = rng.choice(
            ([], [""] * 50_000, _base64(JPEG), ["\u00e4"], [0] * 50_000, [[[[[0] * 9]]]], 5, {})
        )
        data = b""
    document: dict[str, Any] = {"inputs": [tensor] * _one(rng, 1, 0, 2, 5000)}
    if rng.random() < 0.3:
        names = rng.choices(_NAMES, k=rng.choice((1, 1, 3)))
        document["parameters"] = {name: rng.choice(_VALUES) for name in names}
    if rng.random() < 0.2:
        output = rng.choice(({"name": "scores"}, {"name": "o" * 5000}, {}, 5))
        document["outputs"] = [output] * rng.choice((1, 1, 2, 20_000))
    if rng.random() < 0.2:
        document["id"] = rng.choice(("r1", "", "i" * 5000, 5, None, "\u0000"))
    return document, data


def _one(rng: Random, expected: Any, *others: Any) -> Any:
    return expected if rng.random() < 0.95 else rng.choice(others)


def _files(rng: Random) -> bytes:
    """Return the binary data of ``BYTES``, with true or false lengths."""
    parts = []
    for _ in range(rng.choice((1,) * 20 + (0, 2, 17, 50_000))):
        content = rng.choice((*(JPEG,) * 20, b"", JPEG[:99])) if len(parts) < 20 else b""
        length = _one(rng, len(content), *_LENGTHS)
        parts.append(struct.pack("<I", length) + content)
    return b"".join(parts)


def _pixels(rng: Random) -> bytes:
    return (_PIXELS * _one(rng, 1, 2, 0))[: _one(rng, None, 100, -1)]


def _base64(content: bytes) -> list[str]:
    return [base64.b64encode(content).decode()]


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


_FLOODS = (
    b"[" * 2_000_000,
    b'{"inputs":' * 400_000,
    b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}",
    b'{"inputs": [{"data": [' + b"0," * 1_500_000 + b"0]}]}",
    b'{"id": "' + b"\\u00e4" * 500_000 + b'"}',
    b'{"id": ' + b"9" * 3_000_000 + b"}",
    b"{" + b",".join(b'"%d": 0' % index for index in range(45_000)) + b"}",
)
_ENCODINGS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"gzip", lambda body: gzip.compress(body, 1, mtime=0)),
    (b"deflate", lambda body: zlib.compress(body, 1)),
)


def _compress(rng: Random, body: bytes) -> tuple[bytes, bytes]:
    """Return a Content-Encoding and the body in it, a bomb, or other data."""
    encoding, compress = rng.choice(_ENCODINGS)
    compressed = mutate_some(rng, compress(body))
    if rng.random() < 0.3:
        compressed = rng.choice(
            (*_BOMBS[encoding], compressed[:-1], compressed + b"\0", compressed * 2, body)
        )
    return (encoding if rng.random() < 0.95 else b"br, " + encoding), compressed


_BOMBS = {
    encoding: (compress(bytes(50_000_000)), compress(b"[" * 15_000_000))
    for encoding, compress in _ENCODINGS
}
