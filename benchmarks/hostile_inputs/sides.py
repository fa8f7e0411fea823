"""Sides and contents that the image generators share."""

from random import Random

import numpy as np
from PIL import Image, ImageFile

ImageFile.MAXBLOCK = 1 << 24  # Pillow encodes a progressive JPEG into one block

LARGE_SHARE = 0.004
_LARGE = ((8192, 6100), (16_384, 3000), (3000, 16_384), (4000, 3000), (16, 16_384), (6000, 6000))
_INVALID = (0, 1, 15, 16_385, 32_768, 65_535)


def stated_sides(rng: Random) -> tuple[int, int]:
    """Return width and height for a header that need not agree with the pixel data."""
    choice = rng.random()
    if choice < LARGE_SHARE:
        return rng.choice(_LARGE)
    if choice < 0.1:
        return rng.choice(_INVALID), rng.choice((16, 100, *_INVALID))
    if choice < 0.15:
        return rng.randint(500, 1200), rng.randint(500, 1200)
    return rng.randint(16, 130), rng.randint(16, 130)


def image(rng: Random) -> Image.Image:
    """Return an RGB image of noise, of one color or of both."""
    width, height = rng.randint(16, 130), rng.randint(16, 130)
    if rng.random() < 0.05:
        width, height = rng.randint(300, 900), rng.randint(300, 900)
    pixels = np.full((height, width, 3), rng.randrange(256), np.uint8)
    rows = rng.randint(0, height)
    noise = np.frombuffer(rng.randbytes(rows * width * 3), np.uint8)
    pixels[:rows] = noise.reshape(rows, width, 3)
    return Image.fromarray(pixels)
