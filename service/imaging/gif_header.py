"""Header of a GIF file, up to its first frame."""

import struct

from service.imaging.image_header import (
    MAX_PARTS,
    HeaderError,
    ImageHeader,
    too_many_parts,
)

_SCREEN = struct.Struct("<6sHHBBB")
_FRAME = struct.Struct("<BHHHHB")
_EXTENSION, _FRAME_START, _END = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL, _CONTROL_BYTES = 0xF9, 4
_HAS_PALETTE, _HAS_TRANSPARENCY = 0x80, 0x01


def read_gif_header(body: bytes) -> ImageHeader:
    """Read the size; keep the palettes and the first frame, and what follows it.

    The decoder stops at the end of the first frame. Raises :class:`HeaderError` and
    :class:`UnsupportedHeaderError`.
    """
    try:
        signature, width, height, flags, background, aspect = _SCREEN.unpack_from(body)
        palette_end = _SCREEN.size + _palette_bytes(flags)
        position, control, blocks_left = palette_end, b"", MAX_PARTS
        while (kind := body[position]) != _FRAME_START:
            if kind != _EXTENSION:
                end = " before its first frame" if kind == _END else ""
                raise HeaderError(f"it has the byte 0x{kind:02x} in place of a block{end}")
            label, content = body[position + 1], position + 3
            position, blocks_left = _end_of_blocks(body, position + 2, blocks_left)
            if label == _GRAPHIC_CONTROL and position - content >= _CONTROL_BYTES:
                control = _graphic_control(body[content : content + _CONTROL_BYTES])
        _, left, top, frame_width, frame_height, _ = _FRAME.unpack_from(body, position)
    except (IndexError, struct.error):
        raise HeaderError("it has no complete frame") from None
    # Some encoders state a canvas that is smaller than the frame; decoders extend it.
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    screen = _SCREEN.pack(signature, width, height, flags, background, aspect)
    parts = (screen + body[_SCREEN.size : palette_end] + control, memoryview(body)[position:])
    return ImageHeader("GIF", width, height, 1, parts)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_PALETTE else 0


def _end_of_blocks(body: bytes, position: int, blocks_left: int) -> tuple[int, int]:
    """Return the end of a list of blocks, which ends with an empty one, and how many are left."""
    for used in range(1, blocks_left + 1):
        size = body[position]
        position += 1 + size
        if not size:
            return position, blocks_left - used
    raise too_many_parts(MAX_PARTS, "blocks of GIF extensions before the first frame")


def _graphic_control(content: bytes) -> bytes:
    """Return an extension with the transparent color alone, without duration and disposal."""
    flags, color = content[0] & _HAS_TRANSPARENCY, content[3]
    return bytes((_EXTENSION, _GRAPHIC_CONTROL, _CONTROL_BYTES, flags, 0, 0, color, 0))
