"""Labelled images on disk: checked when they are listed, decoded on access."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import cv2
import numpy as np
from PIL import Image

from labels.errors import DatasetError
from labels.image_files import IMAGE_SUFFIXES, find_image
from training.data.sample import AnnotatedImage, Pixels

NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
"""Placeholder in the labels of an image that is decoded on access."""


class Images(Sequence[AnnotatedImage]):
    """Images with their labels; an image is decoded each time it is accessed."""

    def __init__(self, files: Sequence[tuple[Path, AnnotatedImage]]) -> None:
        """``files`` are paths and labels; the pixels of the labels are not used."""
        self._files = tuple(files)

    @property
    def files(self) -> tuple[tuple[Path, AnnotatedImage], ...]:
        """Path and labels of each image, without its pixels."""
        return self._files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> AnnotatedImage: ...

    @overload
    def __getitem__(self, index: slice) -> "Images": ...

    def __getitem__(self, index: int | slice) -> "AnnotatedImage | Images":
        """Decode an image; raises :class:`DatasetError` for a damaged one."""
        if isinstance(index, slice):
            return Images(self._files[index])
        path, labels = self._files[index]
        return replace(labels, pixels=_decode(path))

    def __add__(self, other: "Images") -> "Images":
        return Images((*self._files, *other._files))


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of the image in ``path``, from its header.

    Raises :class:`DatasetError` for a file that is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise DatasetError(f"image {path} is missing or not an image") from error


def check_boxes(path: Path, boxes_xywh: np.ndarray, size: tuple[int, int]) -> None:
    """Raise :class:`DatasetError` for a box outside the image; ``size``: width and height."""
    low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    outside = (low >= size).any(1) | (high <= 0).any(1)
    if outside.any():
        raise DatasetError(f"{path}: box {boxes_xywh[outside][0].tolist()} lies outside the image")


def list_images(list_file: Path, image_dir: Path) -> list[Path]:
    """Return the images whose names are the first words of the lines of ``list_file``.

    Empty lines are skipped. Raises :class:`DatasetError` for an empty list and a missing image.
    """
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{list_file}: cannot be read as a list of names: {error}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise DatasetError(f"{list_file}: lists no images")
    return [_find_image(image_dir, name) for name in names]


def _find_image(directory: Path, name: str) -> Path:
    path = find_image(directory, name)
    if path is None:
        raise DatasetError(f"{directory} has no image {name} ({', '.join(IMAGE_SUFFIXES)})")
    return path


def _decode(path: Path) -> Pixels:
    # Labels refer to the pixels as stored: the EXIF orientation is ignored.
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise DatasetError(f"image {path} is damaged: it cannot be decoded")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
