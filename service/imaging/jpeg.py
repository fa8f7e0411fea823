"""JPEG files: number of scans, and decoding without tolerance for damage.

The scan limit is enforced here because neither Pillow nor simplejpeg has one.
"""

import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# In scan data, 0xff is followed by 0 (stuffing), a restart marker or another 0xff (fill).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def count_scans(body: bytes) -> int:
    """Return the number of scans of the first image in a JPEG file; ignore what follows it."""
    scans, position = 0, 2
    while marker := _NEXT_MARKER.search(body, position):
        kind, position = body[marker.end() - 1], marker.end()
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        position += int.from_bytes(body[position : position + 2], "big")
    return scans


def reduced_side(side_px: int, reduction: int) -> int:
    """Return the length of a side that libjpeg decodes at 1/``reduction``: rounded up."""
    return -(-side_px // reduction)


def decode_strictly(
    body: bytes, size_px: tuple[int, int], reduction: int
) -> NDArray[np.uint8] | None:
    """Decode to uint8 RGB (height, width, 3) in stored orientation.

    ``size_px``: expected width and height after the reduction. Returns None on any error or
    warning of libjpeg, and if the decoded size differs.
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
            # Also limits memory if libjpeg and Pillow read different sizes from the header.
            buffer=pixels,
        )
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None
