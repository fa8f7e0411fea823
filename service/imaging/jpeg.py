"""What is particular to JPEG files."""

import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# In scan data 0xff is followed by 0 (stuffing), a restart marker or itself (fill).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def count_scans(body: bytes) -> int:
    """Scans of the first image in a JPEG file; what is appended to it does not count."""
    scans, position = 0, 2
    while marker := _NEXT_MARKER.search(body, position):
        kind, position = body[marker.end() - 1], marker.end()
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        position += int.from_bytes(body[position : position + 2], "big")
    return scans


def reduced_side(side_px: int, reduction: int) -> int:
    """Pixels of a side that libjpeg has decoded at 1/``reduction``: it rounds up."""
    return -(-side_px // reduction)


def decode_strictly(
    body: bytes, size_px: tuple[int, int], reduction: int
) -> NDArray[np.uint8] | None:
    """Decode to uint8 RGB (height, width, 3), upright or not, of ``size_px`` (width, height).

    None when libjpeg has the slightest objection, or finds another size than was expected.
    """
    width_px, height_px = size_px
    pixels = np.empty((height_px, width_px, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(
            body,
            "RGB",
            min_height=height_px,
            min_width=width_px,
            min_factor=reduction,
            # Also keeps a header that Pillow reads otherwise than libjpeg from costing memory.
            buffer=pixels,
        )
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None
