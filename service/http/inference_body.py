"""Bodies of inference requests over HTTP: JSON, and the binary tensor data that may follow it."""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.requests import Request

from service.cancellation import CancelScope
from service.detection_requests import Claim
from service.errors import (
    BadJsonError,
    EmptyBodyError,
    InvalidInferenceRequestError,
    UnsupportedMediaTypeError,
)
from service.http.decompression import WINDOW_BITS, decompress
from service.http.request_body import BoundedBody, body_timeout, decode_base64
from service.open_inference.models import ModelForm
from service.open_inference.types import (
    BYTES,
    InferRequest,
    InputTensor,
    Parameters,
    RequestedOutput,
)
from service.settings import Settings

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the length of the JSON; binary tensor data follow it."""
MAX_JSON_VALUES = 50_000
"""Values in the JSON of a request: up to 15 ms of the event loop."""
_MAX_ID_CHARACTERS = 1000
_MAX_TENSORS = 32
"""Inputs, and requested outputs; no model has so many."""
_MAX_NESTING = 4
"""Levels of nested lists in the data of a tensor, as in a batch of images."""

_Kind = TypeVar("_Kind")
_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    bool: "true or false",
}


class InferenceReader:
    """Reader of one request.

    ``id``: of the request; None without one. Set by :meth:`read`, as is what :meth:`is_binary`
    returns.
    """

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._settings = settings
        self._all_binary = False
        self._binary: dict[str, bool] = {}
        self.id: str | None = None

    def is_binary(self, output: str) -> bool:
        """Return whether an output is requested in binary form."""
        return self._binary.get(output, self._all_binary)

    async def read(self, form: ModelForm[Any], claim: Claim) -> InferRequest:
        """Read the body; a request whose JSON has the length 0 is the data of the only input.

        Raises the body errors of :mod:`service.errors` and :class:`InvalidInferenceRequestError`.
        """
        json_size = self._json_size()
        body = await self._read_bytes(json_size, claim)
        if json_size is None:
            json_size = len(body)
        if json_size > len(body):
            raise _invalid(f"{HEADER_LENGTH} is {json_size}, and the body has {len(body)} bytes")
        if json_size == 0:
            self._all_binary = True
            return _raw_request(form, body)
        data = memoryview(body)
        document = _parse(bytes(data[:json_size]))
        parameters = dict(_get(document, "parameters", dict, {}))
        self._all_binary = _flag(parameters, "binary_data_output")
        self.id = _get(document, "id", str, None)
        if self.id is not None and len(self.id) > _MAX_ID_CHARACTERS:
            raise _invalid(f"id: {len(self.id)} characters; at most {_MAX_ID_CHARACTERS}")
        outputs = [self._output(item) for item in _objects(document, "outputs")]
        inputs, rest = [], data[json_size:]
        for item in _objects(document, "inputs"):
            tensor, rest = await _read_input(item, rest, form.max_images, claim)
            inputs.append(tensor)
        if len(rest):
            raise _invalid(f"{len(rest)} bytes of the body belong to no input")
        return InferRequest(inputs, outputs, parameters)

    async def _read_bytes(self, json_size: int | None, claim: Claim) -> bytes:
        """Return the decompressed body; its JSON is at most ``json_size`` bytes, None: all of it.

        JSON with too many values is refused before it is parsed.
        """
        settings = self._settings
        body = BoundedBody(self._request, settings.max_body_bytes, claim)
        encoding = self._request.headers.get("content-encoding", "identity").lower()
        chunks: AsyncIterator[bytes] = body.chunks()
        if encoding in WINDOW_BITS:
            chunks = decompress(chunks, encoding, settings.max_body_bytes, claim)
        elif encoding != "identity":
            raise UnsupportedMediaTypeError(
                f"Content-Encoding: received {encoding!r:.100}; accepted are gzip and deflate."
            )
        received: list[bytes] = []
        left = settings.max_body_bytes if json_size is None else json_size
        values = 0
        with CancelScope(body_timeout(settings.body_timeout_s)):
            try:
                async for chunk in chunks:
                    values += sum(chunk.count(mark, 0, left) for mark in (b",", b"[", b"{"))
                    if values > MAX_JSON_VALUES:
                        raise BadJsonError(
                            f"The JSON has more than {MAX_JSON_VALUES} values. Send tensors as "
                            f"binary data: with 'binary_data_size' and the header {HEADER_LENGTH}."
                        )
                    left = max(0, left - len(chunk))
                    received.append(chunk)
            except EmptyBodyError:
                raise _invalid("the body is empty; send JSON with 'inputs'") from None
        return b"".join(received)

    def _json_size(self) -> int | None:
        """Return the length of the JSON that the header states; None without the header."""
        text = self._request.headers.get(HEADER_LENGTH)
        if text is None:
            return None
        if not re.fullmatch("[0-9]{1,18}", text):
            raise _invalid(f"{HEADER_LENGTH}: received {text!r:.100}, accepted: a number of bytes")
        return int(text)

    def _output(self, item: Mapping[str, Any]) -> RequestedOutput:
        name = _get(item, "name", str)
        parameters = dict(_get(item, "parameters", dict, {}))
        if "binary_data" in parameters:
            self._binary[name] = _flag(parameters, "binary_data")
        return RequestedOutput(name, parameters)


def _raw_request(form: ModelForm[Any], body: bytes) -> InferRequest:
    """Return the request for one image; the only element of ``BYTES`` has no length before it."""
    tensor = form.input
    data = [body] if tensor.datatype == BYTES else memoryview(body)
    return InferRequest([InputTensor(tensor.name, tensor.datatype, [1, *tensor.shape[1:]], data)])


def _parse(text: bytes) -> Mapping[str, Any]:
    try:
        document = from_json(text)
    except ValueError as error:
        raise BadJsonError(f"The body is not valid JSON: {str(error)[:200]}.") from None
    if not isinstance(document, dict):
        raise _invalid(f"the JSON is of type {type(document).__name__}, not an object")
    return document


async def _read_input(
    item: Mapping[str, Any], rest: memoryview, max_files: int, claim: Claim
) -> tuple[InputTensor, memoryview]:
    """Return a tensor, and the binary data after its own."""
    name, datatype = _get(item, "name", str), _get(item, "datatype", str)
    parameters: Parameters = _get(item, "parameters", dict, {})
    data: memoryview | list[Any]
    if "binary_data_size" in parameters:
        size = _get(parameters, "binary_data_size", int)
        if "data" in item or not 0 <= size <= len(rest):
            raise _invalid(
                f"input {name[:100]!r}: received the binary_data_size {size} with {len(rest)} "
                "bytes left in the body; it has either so many bytes there or 'data'"
            )
        data, rest = rest[:size], rest[size:]
    elif datatype == BYTES:
        texts = _get(item, "data", list, [])
        if len(texts) > max_files:
            raise _invalid(
                f"input {name[:100]!r}: received {len(texts)} files; at most {max_files} are read"
            )
        data = [await decode_base64(text, claim) for text in texts]
    else:
        data = _flatten(_get(item, "data", list, []))
    return InputTensor(name, datatype, _get(item, "shape", list), data, parameters), rest


def _flatten(values: list[Any]) -> list[Any]:
    """Return the values of lists that are nested as the dimensions of the tensor are, or flat."""
    for _ in range(_MAX_NESTING - 1):
        if not values or not all(isinstance(value, list) for value in values):
            break
        values = [value for part in values for value in part]
    return values


def _objects(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = _get(document, name, list, [])
    if len(items) > _MAX_TENSORS:
        raise _invalid(f"{name}: received {len(items)} items, accepted: at most {_MAX_TENSORS}")
    if not all(isinstance(item, dict) for item in items):
        raise _invalid(f"{name}: received an item that is not an object")
    return items


def _flag(parameters: dict[str, Any], name: str) -> bool:
    """Remove and return a parameter of this transport, which is not one of the model."""
    value = _get(parameters, name, bool, False)
    parameters.pop(name, None)
    return value


_REQUIRED = object()


def _get(
    mapping: Mapping[str, Any], name: str, kind: type[_Kind], default: Any = _REQUIRED
) -> _Kind | Any:
    value = mapping.get(name, default)
    if value is default and default is not _REQUIRED:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        received = "nothing" if value is _REQUIRED else f"a value of type {type(value).__name__}"
        raise _invalid(f"{name}: received {received}; accepted: {_KINDS[kind]}")
    return value


def _invalid(problem: str) -> InvalidInferenceRequestError:
    return InvalidInferenceRequestError(
        f"The inference request cannot be used: {problem}. See docs/open_inference.md."
    )
