"""Request bodies: images, multipart forms and JSON, with limits on bytes and time."""

import asyncio
import binascii
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.cancellation import CancelScope, Timeout
from service.errors import (
    BadFormError,
    BadJsonError,
    BodyTooLargeError,
    EmptyBodyError,
    SlowBodyError,
    UnsupportedMediaTypeError,
)
from service.imaging.image_decoding import ACCEPTED_FORMATS, is_image

IMAGE_FIELD = "image"
_FILE_FIELDS = (IMAGE_FIELD, "file")
_MULTIPART, _JSON = "multipart/form-data", "application/json"
_MAX_OPTIONS, _MAX_OPTION_BYTES = 32, 4096
_MAX_JSON_VALUES = 1000
_DECODED_AT_ONCE = 1 << 20
"""Characters of base64 that are decoded without a turn of the event loop: about 2 ms. A multiple
of 4."""


BodyFields = Mapping[str, list[Any]]
"""The values of each field of a form or a JSON object."""


@dataclass(frozen=True)
class RequestBody:
    """The encoded images of a request, and its other fields, which are options."""

    images: list[bytes]
    options: BodyFields = field(default_factory=dict)


async def read_body(
    request: Request,
    max_bytes: int,
    timeout_s: float,
    claim: Callable[[int], None],
    max_images: int,
) -> RequestBody:
    """Read a body with at most ``max_images`` images; ``claim`` is called with sizes in bytes.

    A multipart form has one image in each file field ``image`` or ``file``, a JSON object one
    base64 string, or a list of them, as ``image``; the other fields are options. If ``max_images``
    is 1, the body may also be the image itself, whatever its Content-Type. Raises the body errors
    of :mod:`service.errors`.
    """
    media_type = _media_type(request.headers)
    body = BoundedBody(request, max_bytes, claim)
    with CancelScope(body_timeout(timeout_s)):
        if media_type == _MULTIPART:
            return await _read_form(request.headers, body, max_images)
        if media_type == _JSON:
            return await _read_json(body, max_images)
        if max_images > 1:
            raise UnsupportedMediaTypeError(
                f"Content-Type: received {media_type[:100]!r}. Send several images as "
                f"{_MULTIPART} with a file field named {IMAGE_FIELD!r} for each; "
                "with curl: -F 'image=@one.jpg' -F 'image=@two.jpg'."
            )
        image = await body.read()
        # Clients such as curl send a Content-Type of their own unless they are given one.
        if not _is_image_type(media_type) and not is_image(image):
            raise UnsupportedMediaTypeError(
                f"Content-Type: received {media_type[:100]!r}, and {len(image)} bytes which start "
                f"with {image[:12]!r}. Send a {ACCEPTED_FORMATS} file itself, a {_MULTIPART} "
                f"body with a file field named {IMAGE_FIELD!r}, or {_JSON} with the file in "
                f"base64 as {IMAGE_FIELD!r}."
            )
        return RequestBody([image])


async def read_json_object(
    request: Request,
    max_bytes: int,
    timeout_s: float,
    claim: Callable[[int], None],
    max_values: int,
) -> dict[str, Any]:
    """Read a body that is a JSON object of at most ``max_values`` values.

    Its Content-Type is not checked. ``claim`` is called with sizes in bytes. Raises the body errors
    of :mod:`service.errors`.
    """
    _media_type(request.headers)  # refuses compressed bodies
    body = BoundedBody(request, max_bytes, claim)
    with CancelScope(body_timeout(timeout_s)):
        return await _read_json_object(body, max_values, "Send less in one request.")


class BoundedBody:
    """The body of a request in chunks.

    The iteration raises :class:`BodyTooLargeError`, :class:`EmptyBodyError` and the errors of
    ``claim``, which is called with the size of each chunk.
    """

    def __init__(self, request: Request, max_bytes: int, claim: Callable[[int], None]) -> None:
        self._request = request
        self.max_bytes = max_bytes
        self.claim = claim

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the chunks as they arrive."""
        # Leading zeros are valid, but int() refuses more than 4,300 digits.
        declared = self._request.headers.get("content-length", "0").lstrip("0")[:20]
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise _too_large(f"{declared} bytes were announced", self.max_bytes)
        size = 0
        async for chunk in self._request.stream():
            size += len(chunk)
            if size > self.max_bytes:
                raise _too_large(f"more than {self.max_bytes} bytes were received", self.max_bytes)
            self.claim(len(chunk))
            yield chunk
        if not size:
            raise EmptyBodyError(
                "The request body is empty. Send the bytes of an image, for example with "
                "curl --data-binary @image.jpg."
            )

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.chunks()])


def body_timeout(timeout_s: float) -> Timeout:
    """Return the timeout for reading a body; it raises :class:`SlowBodyError`."""
    return Timeout(
        timeout_s,
        lambda: SlowBodyError(
            f"The request body did not arrive within {timeout_s:g} s. Send a smaller image."
        ),
    )


def _media_type(headers: Headers) -> str:
    encoding = headers.get("content-encoding", "identity").lower()[:100]
    if encoding != "identity":
        raise UnsupportedMediaTypeError(
            f"Content-Encoding: received {encoding!r}. Images are compressed already: "
            "send the file as it is."
        )
    content_type = headers.get("content-type", "application/octet-stream")
    return content_type.partition(";")[0].strip().lower()


def _is_image_type(media_type: str) -> bool:
    return media_type.startswith("image/") or media_type == "application/octet-stream"


def _too_large(received: str, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The request body is too large: {received}, at most {max_bytes} are accepted. "
        "Scale the image down or compress it more."
    )


async def _read_form(headers: Headers, body: BoundedBody, max_images: int) -> RequestBody:
    """Parse a form while it arrives, so that a large one does not block the event loop."""
    parser = MultiPartParser(
        headers,
        body.chunks(),
        max_files=max_images,
        max_fields=_MAX_OPTIONS,
        max_part_size=_MAX_OPTION_BYTES,
    )
    parser.spool_max_size = body.max_bytes  # in memory: no temporary file
    try:
        form = await parser.parse()
    # ValueError: for example names that are not in the declared character set.
    except (MultiPartException, KeyError, ValueError) as error:
        text = "the boundary is missing" if isinstance(error, KeyError) else _text_of(error)
        raise BadFormError(
            f"The multipart form cannot be used: {text}. Send {_up_to(max_images)} named "
            f"{IMAGE_FIELD!r} and at most {_MAX_OPTIONS} options of at most {_MAX_OPTION_BYTES} "
            "bytes."
        ) from None
    try:
        files: list[UploadFile] = []
        options: dict[str, list[Any]] = {}
        for name, value in form.multi_items():
            if name in _FILE_FIELDS and isinstance(value, UploadFile):
                files.append(value)
            elif isinstance(value, str):
                options.setdefault(name, []).append(value)
        if not files:
            raise EmptyBodyError(
                f"The form has no file field named {IMAGE_FIELD!r}, only {sorted(form)!r:.200}. "
                "With curl: -F 'image=@image.jpg'."
            )
        return RequestBody([await file.read() for file in files], options)
    finally:
        await form.close()


async def _read_json(body: BoundedBody, max_images: int) -> RequestBody:
    """Read images in base64, or data URIs, and options."""
    document = await _read_json_object(
        body, _MAX_JSON_VALUES, f"Send the image in base64 as {IMAGE_FIELD!r}, options beside it."
    )
    texts = _as_list(document.pop(IMAGE_FIELD, None))
    if not texts:
        raise EmptyBodyError(
            f"The JSON object has no {IMAGE_FIELD!r}, only {sorted(document)!r:.200}. Send the "
            "image in base64."
        )
    if len(texts) > max_images:
        raise BadJsonError(f"{IMAGE_FIELD}: received {len(texts)} images, accepted {max_images}.")
    options = {name: _as_list(value) for name, value in document.items() if value is not None}
    texts.reverse()
    # Each text is released once it is decoded.
    return RequestBody(
        [await decode_base64(texts.pop(), body.claim) for _ in range(len(texts))], options
    )


async def _read_json_object(body: BoundedBody, max_values: int, advice: str) -> dict[str, Any]:
    try:
        document = from_json(await _read_json_text(body, max_values, advice))
    except ValueError as error:
        raise BadJsonError(f"The body is not valid JSON: {_text_of(error)}.") from None
    if not isinstance(document, dict):
        raise BadJsonError(
            f"The JSON body is a value of type {type(document).__name__}, not an object. {advice}"
        )
    return document


async def _read_json_text(body: BoundedBody, max_values: int, advice: str) -> bytes:
    """Return the body; refuses one of more values than requests have, before it is parsed."""
    chunks: list[bytes] = []
    marks = 0
    async for chunk in body.chunks():
        marks += sum(chunk.count(mark) for mark in (b",", b"[", b"{"))
        if marks > max_values:
            raise BadJsonError(f"The JSON body has more than {max_values} values. {advice}")
        chunks.append(chunk)
    return b"".join(chunks)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


async def decode_base64(text: Any, claim: Callable[[int], None]) -> bytes:
    """Decode an image in base64, with white space or not, or in a data URI.

    It may be the ``value`` of an object of the type ``base64``, as Roboflow's clients send it.
    ``claim`` is called with its size in bytes. Raises :class:`BadJsonError`.
    """
    try:
        if isinstance(text, dict) and text.get("type") == "base64":
            text = text.get("value")
        if not isinstance(text, str):
            raise ValueError(f"it is of type {type(text).__name__}, not a string")
        if text.startswith("data:"):
            head, _, text = text.partition(",")
            if not head.endswith(";base64"):
                raise ValueError(f"the data URI begins with {head[:60]!r}, not data:...;base64,")
        data = text.encode("ascii").translate(None, b" \t\r\n")
        del text
        claim(len(data) * 3 // 4)
        parts: list[bytes] = []
        for start in range(0, len(data), _DECODED_AT_ONCE):
            part = data[start : start + _DECODED_AT_ONCE]
            parts.append(binascii.a2b_base64(part, strict_mode=True))
            await asyncio.sleep(0)  # other requests of the event loop
    except ValueError as error:  # binascii.Error and UnicodeEncodeError too
        raise BadJsonError(f"{IMAGE_FIELD} cannot be decoded: {_text_of(error)}.") from None
    return b"".join(parts)


def _up_to(max_images: int) -> str:
    return "one file field" if max_images == 1 else f"up to {max_images} file fields"


def _text_of(error: Exception) -> str:
    text: str = getattr(error, "message", str(error))
    return text[:200].rstrip(".")
