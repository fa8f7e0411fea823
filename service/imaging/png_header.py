"""Header of a PNG file."""

import struct

from service.imaging.exif import orientation_from_exif
from service.imaging.image_header import (
    MAX_PARTS,
    HeaderError,
    ImageHeader,
    UnsupportedHeaderError,
    too_many_parts,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FIRST_CHUNK = struct.Struct(">I4sII")
_CHUNK = struct.Struct(">I4s")
_MAX_EXIF_BYTES = 1 << 20


def read_png_header(body: bytes) -> ImageHeader:
    """Read the size and the orientation; keep the chunks that the pixels depend on.

    Raises :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    if len(body) < 33 or _FIRST_CHUNK.unpack_from(body, 8)[:2] != (13, b"IHDR"):
        raise HeaderError("its first chunk is not a complete IHDR")
    _, _, width, height = _FIRST_CHUNK.unpack_from(body, 8)
    view = memoryview(body)
    parts: list[bytes | memoryview] = [view[:33]]
    position, exif, previous, has_data = 33, b"", b"IHDR", False
    for _ in range(MAX_PARTS):
        if position + 12 > len(body):
            break
        size, kind = _CHUNK.unpack_from(body, position)
        end = position + 12 + size
        if kind in (b"acTL", b"fcTL", b"fdAT"):
            frames = int.from_bytes(body[position + 8 : position + 12], "big")
            stated = f" ({frames} frames)" if kind == b"acTL" else ""
            raise UnsupportedHeaderError(
                f"The PNG is animated{stated}. Send each frame as an image of its own."
            )
        if kind == b"IDAT":
            if has_data and previous != b"IDAT":
                raise HeaderError("its IDAT chunks are not consecutive")
            has_data = True
        if kind in (b"IDAT", b"PLTE", b"IEND"):
            parts.append(view[position:end])
        elif kind == b"eXIf" and not exif and size <= _MAX_EXIF_BYTES:
            exif = body[position + 8 : end - 4]
        if kind == b"IEND":
            break
        position, previous = end, kind
    else:
        raise too_many_parts(MAX_PARTS, "PNG chunks")
    return ImageHeader("PNG", width, height, orientation_from_exif(exif), tuple(parts))
