"""Request bodies: raw or multipart images, with limits on bytes and time."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.cancellation import CancelScope, Timeout
from service.errors import (
    BadFormError,
    BodyTooLargeError,
    EmptyBodyError,
    QueueFullError,
    SlowBodyError,
    UnsupportedMediaTypeError,
)

IMAGE_FIELD = "image"
_MULTIPART = "multipart/form-data"


class BodyBudget:
    """Limit on the memory of all request bodies together; a connection without bytes uses none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of request bodies in memory."""
        return self._held_bytes

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes until the block ends.

        It raises :class:`QueueFullError` if the budget is exhausted.
        """
        claimed = 0

        def claim(size: int) -> None:
            nonlocal claimed
            if self._held_bytes + size > self._max_bytes:
                raise QueueFullError(
                    f"The bodies of other requests use the {self._max_bytes} bytes that are "
                    "held at a time. Send the request again after the time in Retry-After.",
                    retry_after_s=1,
                )
            self._held_bytes += size
            claimed += size

        try:
            yield claim
        finally:
            self._held_bytes -= claimed


async def read_images(
    request: Request,
    max_bytes: int,
    timeout_s: float,
    claim: Callable[[int], None],
    max_images: int,
) -> list[bytes]:
    """Return the encoded images of a request; ``claim`` is called with the size of each chunk.

    A multipart form has one image in each file field ``image``, at most ``max_images``. If that is
    1, the body may also be the image itself (``image/*``, ``application/octet-stream`` or no
    Content-Type). Raises the body errors of :mod:`service.errors`.
    """
    media_type = _check_media_type(request.headers)
    if max_images > 1 and media_type != _MULTIPART:
        raise UnsupportedMediaTypeError(
            f"Content-Type: received {media_type[:100]!r}. Send several images as "
            f"multipart/form-data with a file field named {IMAGE_FIELD!r} for each; "
            "with curl: -F 'image=@one.jpg' -F 'image=@two.jpg'."
        )
    body = _BoundedBody(request, max_bytes, claim)
    with CancelScope(Timeout(timeout_s, lambda: _too_slow(timeout_s))):
        if media_type == _MULTIPART:
            return await _read_form(request.headers, body, max_images)
        return [await body.read()]


class _BoundedBody:
    """The body of a request in chunks.

    The iteration raises :class:`BodyTooLargeError`, :class:`EmptyBodyError` and the errors of
    ``claim``, which is called with the size of each chunk.
    """

    def __init__(self, request: Request, max_bytes: int, claim: Callable[[int], None]) -> None:
        self._request = request
        self.max_bytes = max_bytes
        self._claim = claim

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the chunks as they arrive."""
        declared = self._request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise _too_large(f"{declared} bytes were announced", self.max_bytes)
        size = 0
        async for chunk in self._request.stream():
            size += len(chunk)
            if size > self.max_bytes:
                raise _too_large(f"more than {self.max_bytes} bytes were received", self.max_bytes)
            self._claim(len(chunk))
            yield chunk
        if not size:
            raise EmptyBodyError(
                "The request body is empty. Send the bytes of an image, for example with "
                "curl --data-binary @image.jpg -H 'Content-Type: image/jpeg'."
            )

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.chunks()])


def _too_slow(timeout_s: float) -> SlowBodyError:
    return SlowBodyError(
        f"The request body did not arrive within {timeout_s:g} s. Send a smaller image."
    )


def _check_media_type(headers: Headers) -> str:
    encoding = headers.get("content-encoding", "identity").lower()[:100]
    if encoding != "identity":
        raise UnsupportedMediaTypeError(
            f"Content-Encoding: received {encoding!r}. Images are compressed already: "
            "send the file as it is."
        )
    content_type = headers.get("content-type", "application/octet-stream")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type in {"application/octet-stream", _MULTIPART}:
        return media_type
    raise UnsupportedMediaTypeError(
        f"Content-Type: received {media_type[:100]!r}. Send the image itself as image/jpeg, "
        "image/png, image/webp, image/bmp or application/octet-stream, or a "
        f"multipart/form-data body with a file field named {IMAGE_FIELD!r}. "
        "With curl --data-binary, add -H 'Content-Type: image/jpeg'."
    )


def _too_large(received: str, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The request body is too large: {received}, at most {max_bytes} are accepted. "
        "Scale the image down or compress it more."
    )


async def _read_form(headers: Headers, body: _BoundedBody, max_images: int) -> list[bytes]:
    """Parse a form while it arrives, so that a large one does not block the event loop."""
    # Options belong to the query string, so the form has files and no other fields.
    parser = MultiPartParser(headers, body.chunks(), max_files=max_images, max_fields=0)
    parser.spool_max_size = body.max_bytes  # in memory: no temporary file
    try:
        form = await parser.parse()
    # ValueError: for example names that are not in the declared character set.
    except (MultiPartException, KeyError, ValueError) as error:
        text = "the boundary is missing" if isinstance(error, KeyError) else _text_of(error)
        raise BadFormError(
            f"The multipart form cannot be used: {text}. Send {_up_to(max_images)} named "
            f"{IMAGE_FIELD!r}; options belong in the query string."
        ) from None
    try:
        files = [file for file in form.getlist(IMAGE_FIELD) if isinstance(file, UploadFile)]
        if not files:
            raise EmptyBodyError(
                f"The form has no file field named {IMAGE_FIELD!r}, only {sorted(form)!r:.200}. "
                "With curl: -F 'image=@image.jpg'."
            )
        return [await file.read() for file in files]
    finally:
        await form.close()


def _up_to(max_images: int) -> str:
    return "one file field" if max_images == 1 else f"up to {max_images} file fields"


def _text_of(error: Exception) -> str:
    text: str = getattr(error, "message", str(error))
    return text[:200].rstrip(".")
