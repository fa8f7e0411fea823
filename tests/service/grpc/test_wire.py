"""Reading of protobuf messages: the fields are bounded before they are parsed."""

from collections.abc import Callable

import pytest

from service.errors import InvalidInferenceRequestError
from service.grpc.inference_pb2 import ModelInferRequest, ModelReadyRequest
from service.grpc.wire import (
    MAX_FIELDS,
    MAX_PACKED_BYTES,
    MAX_SMALL_BYTES,
    parse_infer_request,
    parse_message,
)


def infer_request() -> ModelInferRequest:
    request = ModelInferRequest(model_name="people", id="7")
    request.parameters["score_threshold"].double_param = 0.5
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[2])
    tensor.parameters["note"].string_param = "ü"
    request.outputs.add(name="boxes")
    return request


def test_splits_off_the_tensors_without_copying_them() -> None:
    expected = infer_request()
    request = infer_request()
    request.raw_input_contents.extend([b"first", b""])
    data = request.SerializeToString()
    message, raw = parse_infer_request(data)
    assert message == expected
    assert raw == [b"first", b""]
    assert all(view.obj is data for view in raw)


def test_reads_fields_in_any_order_and_unknown_ones() -> None:
    unknown = b"\x7a\x01x" + b"\x78\x05" + b"\x7d\0\0\0\0" + b"\x79" + bytes(8)
    message, raw = parse_infer_request(b"\x3a\x01a" + unknown + b"\x0a\x01m" + b"\x3a\x01b")
    assert message.model_name == "m"
    assert raw == [b"a", b"b"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # fewer bytes than the length
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 64 bits
        b"\xff" * 11,  # a tag that does not end
        b"\x0b\x0c",  # a group
        b"\x0e",  # a type that does not exist
        b"\x0a\x01\xff",  # not UTF-8
        b"\x2a\x02\x0a\x05",  # an input whose name is longer than the input
        b"\x25\0\0",  # four bytes of which two are missing
    ],
)
def test_refuses_damaged_messages(data: bytes) -> None:
    with pytest.raises(InvalidInferenceRequestError, match="not a valid protobuf message"):
        parse_infer_request(data)


def entries_of_the_request(count: int) -> bytes:
    return b"\x22\x00" * count


def entries_of_an_input(count: int) -> bytes:
    return b"\x2a" + varint(2 * count) + b"\x22\x00" * count


def unpacked_numbers(count: int) -> bytes:
    contents = b"\x20\x01" * count
    inner = b"\x2a" + varint(len(contents)) + contents
    return b"\x2a" + varint(len(inner)) + inner


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


@pytest.mark.parametrize("make", [entries_of_the_request, entries_of_an_input, unpacked_numbers])
def test_bounds_the_number_of_fields(make: Callable[[int], bytes]) -> None:
    parse_infer_request(make(MAX_FIELDS - 2))
    with pytest.raises(InvalidInferenceRequestError, match=f"more than {MAX_FIELDS} fields"):
        parse_infer_request(make(MAX_FIELDS + 1))


def test_bounds_the_numbers_of_all_inputs_together() -> None:
    request = ModelInferRequest()
    for _ in range(2):
        request.inputs.add().contents.uint_contents.extend([7] * (MAX_PACKED_BYTES // 2))
    message, _ = parse_infer_request(request.SerializeToString())
    assert len(message.inputs[1].contents.uint_contents) == MAX_PACKED_BYTES // 2
    request.inputs[0].contents.uint_contents.append(7)
    with pytest.raises(InvalidInferenceRequestError, match="raw_input_contents"):
        parse_infer_request(request.SerializeToString())


def test_accepts_large_images_in_contents() -> None:
    request = ModelInferRequest()
    request.inputs.add().contents.bytes_contents.append(bytes(2 * MAX_PACKED_BYTES))
    message, _ = parse_infer_request(request.SerializeToString())
    assert len(message.inputs[0].contents.bytes_contents[0]) == 2 * MAX_PACKED_BYTES


def test_bounds_the_bytes_of_other_requests() -> None:
    longest = ModelReadyRequest(name="n" * (MAX_SMALL_BYTES - 4)).SerializeToString()
    assert len(longest) == MAX_SMALL_BYTES
    assert parse_message(longest, ModelReadyRequest).name.startswith("nn")
    with pytest.raises(InvalidInferenceRequestError, match=str(MAX_SMALL_BYTES)):
        parse_message(longest + b"\x12\x00", ModelReadyRequest)
