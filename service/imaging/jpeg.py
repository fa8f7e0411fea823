"""Decoding of JPEG files: first without tolerance for damage, then with Pillow's."""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from service.imaging.image_header import ImageHeader

_ROWS_AT_ONCE = 64


def reduced_side(side_px: int, reduction: int) -> int:
    """Return the length of a side that libjpeg decodes at 1/``reduction``: rounded up."""
    return -(-side_px // reduction)


def decode_jpeg(header: ImageHeader, reduction: int) -> NDArray[np.uint8]:
    """Decode to uint8 RGB (height, width, 3) in stored orientation.

    Raises ``ValueError`` and the exceptions of Pillow on damaged files.
    """
    size = (reduced_side(header.width_px, reduction), reduced_side(header.height_px, reduction))
    data = header.data
    # Pillow decodes CMYK, and files that libjpeg warns of: it decides which are damaged.
    pixels = _decode_strictly(data, size, reduction) if header.channels != 4 else None
    return _decode_with_pillow(data, header, size, reduction) if pixels is None else pixels


def _decode_strictly(
    data: bytes, size_px: tuple[int, int], reduction: int
) -> NDArray[np.uint8] | None:
    """Return None on any error or warning of libjpeg, and if the decoded size differs."""
    width_px, height_px = size_px
    pixels = np.empty((height_px, width_px, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=height_px,
            min_width=width_px,
            min_factor=reduction,
            # Also limits memory if libjpeg reads another size than the header reader.
            buffer=pixels,
        )
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None


def _decode_with_pillow(
    data: bytes, header: ImageHeader, size: tuple[int, int], reduction: int
) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if image.size != (header.width_px, header.height_px):
        raise ValueError(f"its decoder reads a size of {image.size} pixels")
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    image.load()
    if image.size != size:
        raise ValueError(f"{image.size} pixels were decoded instead of {size}")
    pixels = np.empty((*size[::-1], 3), np.uint8)
    # A conversion of the whole image would hold it three times.
    for top in range(0, image.height, _ROWS_AT_ONCE):
        bottom = min(top + _ROWS_AT_ONCE, image.height)
        rows = image.crop((0, top, image.width, bottom)).convert("RGB")
        pixels[top:bottom] = np.asarray(rows)
    return pixels
