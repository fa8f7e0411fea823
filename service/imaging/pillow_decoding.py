"""Decoding with Pillow, for what no other decoder here reads or bounds."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

_ROWS_AT_ONCE = 64
_DEEP_MODES = frozenset({"I;16", "I;16B"})

# Images are decoded in parallel by a thread pool; libavif's own threads would compete with it.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def decode_avif(data: bytes) -> NDArray[np.uint8]:
    """Decode to uint8 RGB (height, width, 3).

    Raises ``ValueError`` and the other exceptions of Pillow on damaged files.
    """
    try:
        return rgb_pixels(Image.open(io.BytesIO(data), formats=("AVIF",)))
    except RuntimeError as error:  # of libavif
        raise ValueError(str(error)) from None


def open_with_pillow(data: bytes, image_format: str, size_px: tuple[int, int]) -> Image.Image:
    """Open an image of the given format, whose header must state this width and height.

    Raises ``ValueError`` and the exceptions of Pillow.
    """
    image = Image.open(io.BytesIO(data), formats=(image_format,))
    if image.size != size_px:
        raise ValueError(f"its decoder reads a size of {image.size} pixels")
    return image


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Decode to uint8 RGB (height, width, 3); raises the exceptions of Pillow.

    Samples of 16 bits keep their high byte.
    """
    image.load()
    if image.mode in _DEEP_MODES:
        high_bytes = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high_bytes[..., np.newaxis], 3, axis=2)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    # A conversion of the whole image would hold it three times.
    for top in range(0, image.height, _ROWS_AT_ONCE):
        bottom = min(top + _ROWS_AT_ONCE, image.height)
        rows = image.crop((0, top, image.width, bottom)).convert("RGB")
        pixels[top:bottom] = np.asarray(rows)
    return pixels
