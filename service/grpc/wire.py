"""Reading of protobuf messages within bounds.

A parser creates an object of a hundred bytes for a map entry of two, and copies every field. The
fields are therefore counted before a message is parsed, and tensors are not parsed at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from service.errors import InvalidInferenceRequestError
from service.grpc.inference_pb2 import ModelInferRequest

MAX_FIELDS = 4096
"""Fields of a message, those of the messages in it included. A packed field is one field."""

MAX_SMALL_BYTES = 64 * 1024
"""Bytes of a request other than ``ModelInfer``."""

MAX_PACKED_BYTES = 3 * 512 * 1024
"""Bytes of the packed fields of a message, which are numbers in ``contents``. Each byte can be an
element, which takes 30 ns to convert. A network input of 512 x 512 pixels takes about 1.2 MB."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_TEXT_TYPES = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)

_Message = TypeVar("_Message", bound=Message)


@dataclass(frozen=True)
class _Field:
    """A field: its number, and where it, and its value, are in the message."""

    number: int
    is_bytes: bool
    start: int
    value_start: int
    end: int


def parse_message(data: bytes, message_type: type[_Message]) -> _Message:
    """Parse a small message. Raises :class:`InvalidInferenceRequestError`."""
    if len(data) > MAX_SMALL_BYTES:
        raise InvalidInferenceRequestError(
            f"The request has {len(data)} bytes; accepted are {MAX_SMALL_BYTES}."
        )
    _FieldReader(data).check(0, len(data), _descriptor(message_type))
    return _parse(data, message_type)


def parse_infer_request(data: bytes) -> tuple[ModelInferRequest, list[memoryview]]:
    """Parse a ``ModelInfer`` request except for its ``raw_input_contents``.

    Returns the message without that field, and the values of the field, which are views of
    ``data``. Raises :class:`InvalidInferenceRequestError`.
    """
    reader = _FieldReader(data)
    descriptor = _descriptor(ModelInferRequest)
    raw_number = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
    raw, others = [], []
    view = memoryview(data)
    for field in reader.fields(0, len(data)):
        if field.number == raw_number and field.is_bytes:
            raw.append(view[field.value_start : field.end])
        else:
            reader.check_value(field, descriptor)
            others.append(view[field.start : field.end])
    return _parse(b"".join(others), ModelInferRequest), raw


class _FieldReader:
    """Reader of the fields of one message, which it counts."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._count = 0
        self._packed_bytes = 0

    def check(self, start: int, end: int, descriptor: Descriptor) -> None:
        """Read all fields from ``start`` to ``end``, which are a message of this type."""
        for field in self.fields(start, end):
            self.check_value(field, descriptor)

    def check_value(self, field: _Field, descriptor: Descriptor) -> None:
        """Read the fields in a field that is a message, and bound the bytes of a packed field.

        ``descriptor``: type of the message that has the field.
        """
        known = descriptor.fields_by_number.get(field.number)
        if known is None or not field.is_bytes:
            return
        if known.message_type is not None:
            self.check(field.value_start, field.end, known.message_type)
        elif known.type not in _TEXT_TYPES:
            self._packed_bytes += field.end - field.value_start
            if self._packed_bytes > MAX_PACKED_BYTES:
                raise InvalidInferenceRequestError(
                    f"The numbers in the field contents take more than the {MAX_PACKED_BYTES} "
                    "bytes that are accepted. Send the inputs in raw_input_contents."
                )

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """Yield the fields from ``start`` to ``end``.

        Raises :class:`InvalidInferenceRequestError` if they are damaged or more than
        :data:`MAX_FIELDS`.
        """
        position = start
        while position < end:
            self._count += 1
            if self._count > MAX_FIELDS:
                raise InvalidInferenceRequestError(
                    f"The request has more than {MAX_FIELDS} fields. Send fewer parameters, and "
                    "tensors in raw_input_contents."
                )
            tag, value_start = self._read_varint(position, end)
            kind = tag & 7
            if kind == _BYTES:
                size, value_start = self._read_varint(value_start, end)
                value_end = value_start + size
            elif kind == _VARINT:
                _, value_end = self._read_varint(value_start, end)
            elif kind in _FIXED_SIZES:
                value_end = value_start + _FIXED_SIZES[kind]
            else:  # groups, which proto3 does not have, and types that do not exist
                raise _damaged()
            if value_end > end:
                raise _damaged()
            yield _Field(tag >> 3, kind == _BYTES, position, value_start, value_end)
            position = value_end

    def _read_varint(self, start: int, end: int) -> tuple[int, int]:
        """Return the integer at ``start`` and the position after it."""
        value = 0
        for index in range(min(_MAX_VARINT_BYTES, end - start)):
            byte = self._data[start + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, start + index + 1
        raise _damaged()


def _descriptor(message_type: type[Message]) -> Descriptor:
    return cast(Descriptor, message_type.DESCRIPTOR)  # the stubs also have a type of upb


def _parse(data: bytes, message_type: type[_Message]) -> _Message:
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise _damaged() from None


def _damaged() -> InvalidInferenceRequestError:
    return InvalidInferenceRequestError(
        "The request is not a valid protobuf message of this method, or its text is not UTF-8."
    )
