"""Inputs to verify with: made-up ones that need no data, and pictures where there are some."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.errors import PicturesError

MAX_PICTURES = 16
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_BLOB_CELLS = 8

Picture = NDArray[np.uint8]
"""RGB, (height, width, 3)."""


def synthetic_images(height_px: int, width_px: int) -> list[Picture]:
    """Make noise, two images of soft blobs and a black image; the same ones every time."""
    random = np.random.default_rng(20190425)
    noise = random.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    blobs = [_blobs(random, height_px, width_px) for _ in range(2)]
    return [noise, *blobs, np.zeros_like(noise)]


def _blobs(random: np.random.Generator, height_px: int, width_px: int) -> Picture:
    coarse = random.integers(0, 256, (_BLOB_CELLS, _BLOB_CELLS, 3), dtype=np.uint8)
    return _resized(Image.fromarray(coarse), height_px, width_px)


def read_pictures(directory: Path, height_px: int, width_px: int) -> list[Picture]:
    """Read the first pictures of ``directory`` by name, stretched to the input's size.

    Stretching is good enough here: both sides of the comparison get the same pixels. Raises
    :class:`PicturesError`.
    """
    if not directory.is_dir():
        raise PicturesError(f"{directory} is not a directory. Name one that holds pictures.")
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise PicturesError(
            f"{directory} holds no picture. Accepted are {', '.join(sorted(_SUFFIXES))}."
        )
    return [_read_picture(path, height_px, width_px) for path in paths[:MAX_PICTURES]]


def _read_picture(path: Path, height_px: int, width_px: int) -> Picture:
    try:
        with Image.open(path) as picture:
            return _resized(picture.convert("RGB"), height_px, width_px)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise PicturesError(f"{path} cannot be read as a picture: {error}. Remove it.") from error


def _resized(picture: Image.Image, height_px: int, width_px: int) -> Picture:
    resized = picture.resize((width_px, height_px), Image.Resampling.BICUBIC)
    return np.array(resized, dtype=np.uint8)
