"""Header of a WebP file."""

import struct

from service.imaging.exif import orientation_from_exif
from service.imaging.image_header import (
    MAX_PARTS,
    HeaderError,
    ImageHeader,
    UnsupportedHeaderError,
    too_many_parts,
)

_CHUNK = struct.Struct("<4sI")
_ANIMATION_FLAG = 0x02
_MAX_EXIF_BYTES = 1 << 20


def read_webp_header(body: bytes) -> ImageHeader:
    """Read the size and the orientation; keep the color data, since alpha is dropped.

    Raises :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    position, exif = 12, b""
    data: memoryview | None = None
    canvas: tuple[int, int] | None = None
    for _ in range(MAX_PARTS):
        if position + 8 > len(body):
            break
        kind, size = _CHUNK.unpack_from(body, position)
        start, end = position + 8, position + 8 + size
        if end > len(body):
            raise HeaderError("a chunk extends beyond its end")
        if kind == b"VP8X" and size >= 10:
            if body[start] & _ANIMATION_FLAG:
                raise UnsupportedHeaderError(
                    "The WebP is animated. Send each frame as an image of its own."
                )
            canvas = (_uint24(body, start + 4) + 1, _uint24(body, start + 7) + 1)
        elif kind in (b"VP8 ", b"VP8L") and data is None:
            data = memoryview(body)[position : end + size % 2]
        elif kind == b"EXIF" and not exif and size <= _MAX_EXIF_BYTES:
            exif = body[start:end]
        position = end + size % 2
    else:
        raise too_many_parts(MAX_PARTS, "WebP chunks")
    if data is None:
        raise HeaderError("it has no image data")
    width, height = _data_size(bytes(data[:18]))
    if canvas not in (None, (width, height)):
        raise HeaderError(f"its canvas has another size than its {width} x {height} pixels")
    riff = b"RIFF" + (4 + len(data)).to_bytes(4, "little") + b"WEBP"
    orientation = orientation_from_exif(exif)
    is_lossless = bytes(data[:4]) == b"VP8L"
    return ImageHeader(
        "WEBP", width, height, orientation, (riff, data), is_lossless_webp=is_lossless
    )


def _data_size(chunk: bytes) -> tuple[int, int]:
    """Return the width and height from the first 18 bytes of a ``VP8 `` or ``VP8L`` chunk."""
    if chunk[:4] == b"VP8 " and len(chunk) == 18 and chunk[11:14] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", chunk, 14)
        return width & 0x3FFF, height & 0x3FFF
    if chunk[:4] == b"VP8L" and len(chunk) >= 13 and chunk[8] == 0x2F:
        (bits,) = struct.unpack_from("<I", chunk, 9)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise HeaderError("its image data have no valid header")


def _uint24(body: bytes, position: int) -> int:
    return int.from_bytes(body[position : position + 3], "little")
