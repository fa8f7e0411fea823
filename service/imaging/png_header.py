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
_FIRST_CHUNK = struct.Struct(">I4sIIBBBBB")
_CHUNK = struct.Struct(">I4s")
_MAX_EXIF_BYTES = 1 << 20
_PALETTE = 3
# Bits per sample by color type: gray, RGB, palette, gray and RGB with alpha.
_DEPTHS = {
    0: (1, 2, 4, 8, 16),
    2: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    4: (8, 16),
    6: (8, 16),
}


def read_png_header(body: bytes) -> ImageHeader:
    """Read the size and the orientation; keep the chunks that the pixels depend on.

    Raises :class:`HeaderError` and :class:`UnsupportedHeaderError`.
    """
    if len(body) < 33 or _FIRST_CHUNK.unpack_from(body, 8)[:2] != (13, b"IHDR"):
        raise HeaderError("its first chunk is not a complete IHDR")
    _, _, width, height, depth, color_type, *methods = _FIRST_CHUNK.unpack_from(body, 8)
    if depth not in _DEPTHS.get(color_type, ()) or methods not in ([0, 0, 0], [0, 0, 1]):
        raise HeaderError(
            f"its IHDR has {depth} bits of color type {color_type} and the methods {methods}, "
            "which no version of PNG has"
        )
    view = memoryview(body)
    parts: list[bytes | memoryview] = [view[:33]]
    position, exif, previous = 33, b"", b"IHDR"
    has_data = has_palette = False
    for _ in range(MAX_PARTS):
        if position + 12 > len(body):
            break
        size, kind = _CHUNK.unpack_from(body, position)
        end = position + 12 + size
        if end > len(body):  # a decoder may allocate the stated size before it reads
            raise HeaderError("a chunk extends beyond its end")
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
        # libpng writes a line to stderr for every palette that it does not use.
        is_palette = kind == b"PLTE" and color_type == _PALETTE and not has_palette
        has_palette |= is_palette
        if is_palette or kind in (b"IDAT", b"IEND"):
            parts.append(view[position:end])
        elif kind == b"eXIf" and not exif and size <= _MAX_EXIF_BYTES:
            exif = body[position + 8 : end - 4]
        if kind == b"IEND":
            break
        position, previous = end, kind
    else:
        raise too_many_parts(MAX_PARTS, "PNG chunks")
    return ImageHeader("PNG", width, height, orientation_from_exif(exif), tuple(parts))
