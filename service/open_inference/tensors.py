"""Reading of the input tensors of a request, with bounds on everything that the client states."""

import struct
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInferenceRequestError, UnsupportedOperationError
from service.open_inference.types import InputTensor, Parameters, TensorMetadata

_LENGTH = struct.Struct("<I")


def read_files(tensor: InputTensor, metadata: TensorMetadata, max_count: int) -> list[bytes]:
    """Return the elements of a ``BYTES`` tensor of shape (n,), 1 <= n <= ``max_count``.

    Raises :class:`InvalidInferenceRequestError` and :class:`UnsupportedOperationError`.
    """
    (count,) = _checked_shape(tensor, metadata, max_count)
    if isinstance(tensor.data, memoryview):
        files = list(_binary_elements(tensor.name, tensor.data, count))
    else:
        files = list(tensor.data)
    if len(files) != count:
        raise _wrong(tensor.name, f"{len(files)} elements", f"{count}, as its shape states")
    return files


def read_images(
    tensor: InputTensor, metadata: TensorMetadata, max_count: int
) -> list[NDArray[np.uint8]]:
    """Return the images (height, width, 3) of a ``UINT8`` tensor of shape (n, height, width, 3).

    1 <= n <= ``max_count``. Images in binary form are views of the received data. Raises
    :class:`InvalidInferenceRequestError` and :class:`UnsupportedOperationError`.
    """
    shape = _checked_shape(tensor, metadata, max_count)
    size = prod(shape)
    data = tensor.data
    if not isinstance(data, memoryview):
        data = memoryview(_bytes_of(tensor.name, data, size))
    if len(data) != size:
        raise _wrong(tensor.name, f"{len(data)} bytes", f"{size}, as its shape states")
    return list(np.frombuffer(data, np.uint8).reshape(shape))


def _checked_shape(
    tensor: InputTensor, metadata: TensorMetadata, max_count: int
) -> tuple[int, ...]:
    """Return the shape of a tensor whose data type and shape are those of the model."""
    refuse_shared_memory(tensor.parameters)
    if tensor.datatype != metadata.datatype:
        raise _wrong(
            tensor.name, f"the data type {tensor.datatype!r:.100}", repr(metadata.datatype)
        )
    shape = tuple(tensor.shape)
    accepted = f"the shape {list(metadata.shape)}, where -1 is 1 to {max_count}"
    received = f"the shape {list(tensor.shape[:8])!r:.100}"
    if len(shape) != len(metadata.shape) or any(type(side) is not int for side in shape):
        raise _wrong(tensor.name, received, accepted)
    for side, expected in zip(shape, metadata.shape, strict=True):
        if not (1 <= side <= max_count if expected == -1 else side == expected):
            raise _wrong(tensor.name, received, accepted)
    return shape


def refuse_shared_memory(parameters: Parameters) -> None:
    """Raise :class:`UnsupportedOperationError` for the parameters of a tensor in shared memory."""
    if "shared_memory_region" in parameters:
        raise UnsupportedOperationError(
            "The service does not use shared memory. Send the data of the tensors in the request, "
            "and leave out the parameters of shared memory for outputs."
        )


def _binary_elements(name: str, data: memoryview, count: int) -> Iterator[bytes]:
    """Yield the elements of a ``BYTES`` tensor, each after its length; all data must be used."""
    start = 0
    for index in range(count):
        left = len(data) - start
        if left < _LENGTH.size:
            raise _wrong(name, f"{len(data)} bytes with {index} elements", f"{count} elements")
        (size,) = _LENGTH.unpack_from(data, start)
        if size > left - _LENGTH.size:
            raise _wrong(
                name,
                f"the length {size} of element {index}, which {left - _LENGTH.size} bytes follow",
                "at most those",
            )
        start += _LENGTH.size
        yield bytes(data[start : start + size])
        start += size
    if start < len(data):
        raise _wrong(name, f"{len(data) - start} bytes after its last element", "none")


def _bytes_of(name: str, values: Sequence[object], size: int) -> bytes:
    if len(values) != size:
        raise _wrong(name, f"{len(values)} values", f"{size}, as its shape states")
    try:
        return bytes(values)  # type: ignore[arg-type] # raises for anything but 0 to 255
    except (TypeError, ValueError):
        raise _wrong(name, "a value of another type or range", "integers from 0 to 255") from None


def _wrong(name: str, received: str, accepted: str) -> InvalidInferenceRequestError:
    return InvalidInferenceRequestError(
        f"Input {name!r:.100}: received {received}; accepted: {accepted}."
    )
