"""Verification images: synthetic ones and images from a directory."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model_export.errors import ImagesError

MAX_IMAGES = 16
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_BLOB_CELLS = 8
_SHAPES, _MAX_SHAPE_SHARE = 24, 4
"""Shapes in a drawn scene, and the side of the image as a multiple of the side of the largest."""

ImageArray = NDArray[np.uint8]
"""RGB, (height, width, 3)."""


def synthetic_images(height_px: int, width_px: int) -> list[ImageArray]:
    """Return noise, two images of smooth blobs and a black image; deterministic."""
    random = np.random.default_rng(20190425)
    noise = random.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    blobs = [_blobs(random, height_px, width_px) for _ in range(2)]
    return [noise, *blobs, np.zeros_like(noise)]


def drawn_scenes(height_px: int, width_px: int) -> list[ImageArray]:
    """Return two images of ellipses and rectangles before smooth blobs; deterministic.

    They have edges and areas, as the images that networks are made for. In uniform noise, the
    maps of some networks are so uneven that rounding decides which cells are peaks.
    """
    random = np.random.default_rng(20190407)
    return [_scene(random, height_px, width_px) for _ in range(2)]


def _scene(random: np.random.Generator, height_px: int, width_px: int) -> ImageArray:
    image = Image.fromarray(_blobs(random, height_px, width_px))
    draw = ImageDraw.Draw(image)
    size = np.array([width_px, height_px])
    for number in range(_SHAPES):
        center, side = random.random(2) * size, random.random(2) * size / _MAX_SHAPE_SHARE
        color = tuple(random.integers(0, 256, 3).tolist())
        box = (*(center - side / 2).tolist(), *(center + side / 2).tolist())
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=color)
    return np.array(image, dtype=np.uint8)


def _blobs(random: np.random.Generator, height_px: int, width_px: int) -> ImageArray:
    coarse = random.integers(0, 256, (_BLOB_CELLS, _BLOB_CELLS, 3), dtype=np.uint8)
    return _resized(Image.fromarray(coarse), height_px, width_px)


def read_images(
    directory: Path, height_px: int, width_px: int, limit: int = MAX_IMAGES
) -> list[ImageArray]:
    """Read the first images of ``directory`` by name, up to ``limit``, and resize them.

    The aspect ratio is not kept, since both sides of the comparison get the same pixels. Raises
    :class:`ImagesError`.
    """
    if not directory.is_dir():
        raise ImagesError(f"{directory} is not a directory. Give a directory of images.")
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ImagesError(f"{directory} holds no images. Accepted: {', '.join(sorted(_SUFFIXES))}.")
    return [read_image(path, height_px, width_px)[0] for path in paths[:limit]]


def read_image(path: Path, height_px: int, width_px: int) -> tuple[ImageArray, tuple[int, int]]:
    """Read and resize an image; also return the width and height of the file's image.

    Raises :class:`ImagesError`.
    """
    try:
        with Image.open(path) as image:
            return _resized(image.convert("RGB"), height_px, width_px), image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImagesError(f"{path} cannot be read as an image: {error}. Remove it.") from error


def _resized(image: Image.Image, height_px: int, width_px: int) -> ImageArray:
    resized = image.resize((width_px, height_px), Image.Resampling.BICUBIC)
    return np.array(resized, dtype=np.uint8)
