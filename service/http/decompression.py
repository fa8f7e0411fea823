"""Decompression of request bodies, with a limit on the result."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from service.errors import BodyTooLargeError, InvalidInferenceRequestError

WINDOW_BITS: Mapping[str, int] = {"gzip": 31, "deflate": 15}
"""Arguments of zlib by Content-Encoding; ``deflate`` has the header of zlib."""

_AT_ONCE = 1 << 18
"""Bytes that are decompressed without a turn of the event loop: about a millisecond."""


async def decompress(
    chunks: AsyncIterator[bytes], encoding: str, max_bytes: int, claim: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """Yield the decompressed body; ``claim`` is called with the size of each piece.

    ``encoding``: a key of :data:`WINDOW_BITS`. Raises :class:`BodyTooLargeError` for a result of
    more than ``max_bytes``, and :class:`InvalidInferenceRequestError` for damaged data.
    """
    decoder = zlib.decompressobj(WINDOW_BITS[encoding])
    size = 0
    async for chunk in chunks:
        left, piece = chunk, b""
        # Output may be left although all input was consumed.
        while (left or len(piece) == _AT_ONCE) and not decoder.eof:
            try:
                piece = decoder.decompress(left, _AT_ONCE)
            except zlib.error as error:
                raise _damaged(encoding, str(error)) from None
            left = decoder.unconsumed_tail
            size += len(piece)
            if size > max_bytes:
                raise BodyTooLargeError(
                    f"The decompressed body has more than {max_bytes} bytes, which is the maximum. "
                    "Send fewer images per request."
                )
            claim(len(piece))
            yield piece
            await asyncio.sleep(0)  # other requests of the event loop
        if decoder.unused_data or (decoder.eof and left):
            raise _damaged(encoding, "there are bytes after its end")
    if not decoder.eof:
        raise _damaged(encoding, "it is not complete")


def _damaged(encoding: str, problem: str) -> InvalidInferenceRequestError:
    return InvalidInferenceRequestError(
        f"The body cannot be decompressed with {encoding}: {problem}. Send it again, or without "
        "compression."
    )
