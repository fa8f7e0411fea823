"""Check that an ONNX file contains its weights itself, without the ``onnx`` package.

Weights in external files would not be covered by the digest of the artifact, and their paths may
leave the package. The file is read as protobuf messages (https://protobuf.dev/programming-guides/encoding);
of those, only the ones that can contain a TensorProto of ``onnx.proto`` are entered.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from model_package.errors import PackageInvalidError

MAX_FIELDS = 1_000_000
"""Maximum fields that are read, which bounds the time; the bundled models have 2,300 to 5,100."""
MAX_DEPTH = 64
"""Maximum nesting of messages; each subgraph of a node takes three."""

_TENSOR = "TensorProto"
_MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
"""Message type of each field that can contain a tensor, by message type and field number."""
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_FIXED_BYTES = {_I64: 8, _I32: 4}


def check_self_contained(path: Path) -> None:
    """Raise :class:`PackageInvalidError` if the ONNX file refers to other files or is damaged."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            is_external = any(
                message == _TENSOR
                and (field == _EXTERNAL_DATA or (field, value) == (_DATA_LOCATION, _EXTERNAL))
                for message, field, value in _fields(content)
            )
    except (_MalformedError, ValueError) as error:
        raise PackageInvalidError(
            f"{path} is not an ONNX file, or it is damaged: {error}. Export the model again."
        ) from None
    if is_external:
        raise PackageInvalidError(
            f"{path} keeps weights in external files; only a single file is accepted. Save it with "
            "onnx.save(onnx.load(path), path, save_as_external_data=False)."
        )


class _MalformedError(Exception):
    """The bytes are not the encoding of a message."""


def _fields(content: mmap.mmap) -> Iterator[tuple[str, int, int | None]]:
    """Yield message type, field number and (for varints) value of every field."""
    open_messages = [("ModelProto", len(content))]
    position = 0
    for _ in range(MAX_FIELDS):
        while open_messages and position == open_messages[-1][1]:
            open_messages.pop()
        if not open_messages:
            return
        message, end = open_messages[-1]
        tag, position = _read_varint(content, position, end)
        field, wire_type = tag >> 3, tag & 7
        value = None
        if wire_type == _VARINT:
            value, position = _read_varint(content, position, end)
        elif wire_type == _LEN:
            size, position = _read_varint(content, position, end)
            if size > end - position:
                raise _MalformedError(f"a field at byte {position} is longer than its message")
            child = _MESSAGES[message].get(field)
            if child is None:
                position += size
            else:
                open_messages.append((child, position + size))
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        else:
            raise _MalformedError(f"wire type {wire_type} at byte {position}")
        if position > end or len(open_messages) > MAX_DEPTH:
            raise _MalformedError(f"its messages end early or are nested too deeply at {position}")
        yield message, field, value
    raise _MalformedError(f"it has more than {MAX_FIELDS} fields")


def _read_varint(content: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Return an integer and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _MalformedError(f"an integer at byte {position} is cut off or too long")
