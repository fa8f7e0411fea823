"""Input tensors: what is read, and the sizes and counts that are refused."""

import struct
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidInferenceRequestError, UnsupportedOperationError
from service.open_inference.tensors import read_files, read_images
from service.open_inference.types import BYTES, InputTensor, TensorMetadata

FILES = TensorMetadata("image", BYTES, (-1,))
IMAGES = TensorMetadata("images", "UINT8", (-1, 2, 4, 3))
MAX_COUNT = 3


def encoded(*elements: bytes) -> memoryview:
    """Return the binary representation of a ``BYTES`` tensor."""
    return memoryview(b"".join(struct.pack("<I", len(item)) + item for item in elements))


def files_of(shape: list[Any], data: memoryview | list[Any], datatype: str = BYTES) -> list[bytes]:
    return read_files(InputTensor("image", datatype, shape, data), FILES, MAX_COUNT)


def images_of(
    shape: list[Any], data: memoryview | list[Any], datatype: str = "UINT8"
) -> list[np.ndarray[Any, Any]]:
    return read_images(InputTensor("images", datatype, shape, data), IMAGES, MAX_COUNT)


def test_files_are_read_in_order() -> None:
    elements = [b"first", b"", b"third \x00 \xff"]
    assert files_of([3], encoded(*elements)) == elements
    assert files_of([3], list(elements)) == elements


def test_images_are_views_of_the_data() -> None:
    data = bytearray(range(48))
    images = images_of([2, 2, 4, 3], memoryview(data))
    assert [image.shape for image in images] == [(2, 4, 3), (2, 4, 3)]
    assert images[1][0, 0].tolist() == [24, 25, 26]
    data[24] = 99
    assert images[1][0, 0, 0] == 99
    values = images_of([1, 2, 4, 3], list(range(24)))
    assert values[0].tobytes() == bytes(range(24))


@pytest.mark.parametrize(
    "data",
    [
        encoded(b"one"),  # fewer elements than the shape states
        encoded(b"one", b"two", b"three"),
        memoryview(bytes(encoded(b"one", b"two")) + b"\x00"),
        memoryview(bytes(encoded(b"one", b"two"))[:-1]),
        memoryview(bytes(encoded(b"one")) + b"\x00\x00\x00"),
        memoryview(bytes(encoded(b"one")) + b"\xff\xff\xff\xff"),
        memoryview(b""),
        [b"one"],
        [b"one", b"two", b"three"],
    ],
    ids=range(9),
)
def test_lengths_that_lie_are_refused(data: memoryview | list[Any]) -> None:
    with pytest.raises(InvalidInferenceRequestError, match="Input 'image': received"):
        files_of([2], data)


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_sizes_that_lie_are_refused(size: int) -> None:
    with pytest.raises(InvalidInferenceRequestError, match=f"received {size} bytes"):
        images_of([1, 2, 4, 3], memoryview(bytes(size)))
    with pytest.raises(InvalidInferenceRequestError, match=f"received {size} values"):
        images_of([1, 2, 4, 3], [0] * size)


@pytest.mark.parametrize("value", [256, -1, 1.5, "1", None, [1]])
def test_values_that_are_no_pixels_are_refused(value: Any) -> None:
    with pytest.raises(InvalidInferenceRequestError, match="integers from 0 to 255"):
        images_of([1, 2, 4, 3], [value] * 24)


@pytest.mark.parametrize(
    "shape",
    [[], [0], [4], [-1], [2**63], [True], [1.0], ["1"], [None], [1, 1], [[1]], [1] * 100_000],
    ids=range(12),
)
def test_other_shapes_are_refused(shape: list[Any]) -> None:
    with pytest.raises(InvalidInferenceRequestError, match="where -1 is 1 to 3") as caught:
        files_of(shape, encoded(b"one"))
    assert len(caught.value.detail) < 400


@pytest.mark.parametrize(
    "shape", [[2, 4, 3], [1, 4, 2, 3], [1, 2, 4, 4], [0, 2, 4, 3], [4, 2, 4, 3]]
)
def test_other_sizes_of_images_are_refused(shape: list[int]) -> None:
    with pytest.raises(InvalidInferenceRequestError, match="shape"):
        images_of(shape, memoryview(bytes(24)))


@pytest.mark.parametrize("datatype", ["UINT8", "FP32", "bytes", "", None, "X" * 1000])
def test_other_data_types_are_refused(datatype: Any) -> None:
    with pytest.raises(InvalidInferenceRequestError, match="'BYTES'") as caught:
        files_of([1], encoded(b"one"), datatype)
    assert len(caught.value.detail) < 300


def test_shared_memory_is_not_supported() -> None:
    tensor = InputTensor("image", BYTES, [1], [], {"shared_memory_region": "region"})
    with pytest.raises(UnsupportedOperationError, match="does not use shared memory"):
        read_files(tensor, FILES, MAX_COUNT)
