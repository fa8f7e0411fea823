"""Decoding of JPEG files: first without tolerance for damage, then with Pillow's."""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from service.imaging.image_header import ImageHeader
from service.imaging.pillow_decoding import open_with_pillow, rgb_pixels


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
    image = open_with_pillow(data, "JPEG", (header.width_px, header.height_px))
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    pixels = rgb_pixels(image)
    if image.size != size:
        raise ValueError(f"{image.size} pixels were decoded instead of {size}")
    return pixels
