"""Responses to inference requests over HTTP: JSON with values, or binary data after the JSON."""

import asyncio
import zlib
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.responses import Response

from service.http.compression import choose_encoding
from service.http.decompression import WINDOW_BITS
from service.http.inference_body import HEADER_LENGTH
from service.open_inference.types import InferResponse, OutputTensor

_VALUES_AT_ONCE = 20_000
"""Values that are written without a turn of the event loop: about 3 ms."""
_MIN_COMPRESSED_BYTES = 1024
"""Shorter responses are not compressed."""


async def to_http(
    response: InferResponse,
    request_id: str | None,
    is_binary: Callable[[str], bool],
    request_headers: Headers,
) -> Response:
    """Return the HTTP response.

    ``request_id``: is repeated. ``is_binary``: returns whether an output is sent as binary data.
    The response is compressed with gzip or deflate if the request accepts one of them.
    """
    head: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if request_id is not None:
        head["id"] = request_id
    parts: list[bytes] = []
    outputs: list[bytes] = []
    for output in response.outputs:
        if is_binary(output.name):
            parts.append(output.values.tobytes())
            outputs.append(to_json({**_metadata(output), **_binary_size(parts[-1])}))
        else:
            outputs.append(await _with_values(output))
    text = b'%b,"outputs":[%b]}' % (to_json(head)[:-1], b",".join(outputs))
    headers, media_type = {}, "application/json"
    if parts:
        headers[HEADER_LENGTH] = str(len(text))
        media_type = "application/octet-stream"
    content = b"".join([text, *parts])
    encoding = choose_encoding(request_headers, WINDOW_BITS)
    if encoding is not None and len(content) >= _MIN_COMPRESSED_BYTES:
        content = await asyncio.to_thread(
            zlib.compress, content, level=1, wbits=WINDOW_BITS[encoding]
        )
        headers |= {"Content-Encoding": encoding}
    headers["Vary"] = "Accept-Encoding"
    return Response(content, 200, headers, media_type)


def _metadata(output: OutputTensor) -> dict[str, Any]:
    return {
        "name": output.name,
        "datatype": output.datatype,
        "shape": list(output.values.shape),
    }


def _binary_size(part: bytes) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": len(part)}}


async def _with_values(output: OutputTensor) -> bytes:
    """Return an output with its values in row-major order."""
    flat = output.values.reshape(-1)
    pieces = []
    for start in range(0, flat.size, _VALUES_AT_ONCE):
        values = flat[start : start + _VALUES_AT_ONCE].tolist()
        pieces.append(to_json(values, inf_nan_mode="null")[1:-1])
        if start:
            await asyncio.sleep(0)  # other requests of the event loop
    return b'%b,"data":[%b]}' % (to_json(_metadata(output))[:-1], b",".join(pieces))
