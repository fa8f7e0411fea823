"""Labelled images on disk: checked when they are listed, decoded when they are needed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import cv2
import numpy as np
from PIL import Image

from training.data.sample import AnnotatedImage, Pixels

NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
"""What stands in labels for an image that is decoded when it is needed."""

_SUFFIXES = (".png", ".jpg", ".jpeg")


class DatasetError(ValueError):
    """A data set file that cannot be trained on; the message names the file and the entry."""


class Images(Sequence[AnnotatedImage]):
    """Images with their labels; only what is looked at is in memory."""

    def __init__(self, files: Sequence[tuple[Path, AnnotatedImage]]) -> None:
        """``files`` are paths and labels; the labels' own pixels are not looked at."""
        self._files = tuple(files)

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> AnnotatedImage: ...

    @overload
    def __getitem__(self, index: slice) -> "Images": ...

    def __getitem__(self, index: int | slice) -> "AnnotatedImage | Images":
        """Decode an image; raises :class:`DatasetError` for one that cannot be."""
        if isinstance(index, slice):
            return Images(self._files[index])
        path, labels = self._files[index]
        return replace(labels, pixels=_decode(path))

    def __add__(self, other: "Images") -> "Images":
        return Images((*self._files, *other._files))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the image in ``path``, from its first bytes.

    Raises :class:`DatasetError` for what is no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise DatasetError(f"image {path} is missing or not an image") from error


def check_boxes(path: Path, boxes_xywh: np.ndarray, size: tuple[int, int]) -> None:
    """Raise :class:`DatasetError` where a box lies outside the image of this width and height."""
    low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    outside = (low >= size).any(1) | (high <= 0).any(1)
    if outside.any():
        raise DatasetError(f"{path}: box {boxes_xywh[outside][0].tolist()} lies outside the image")


def find_image(directory: Path, name: str) -> Path:
    """The image called ``name`` with one of the usual suffixes.

    Raises :class:`DatasetError` when there is none.
    """
    for suffix in _SUFFIXES:
        path = directory / f"{name}{suffix}"
        if path.is_file():
            return path
    raise DatasetError(f"{directory} has no image {name} ({', '.join(_SUFFIXES)})")


def read_names(path: Path) -> list[str]:
    """Names of images, the first word of every line that is not empty (KITTI and VOC lists)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not readable as a list of names: {error}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise DatasetError(f"{path}: lists no images")
    return names


def _decode(path: Path) -> Pixels:
    # Labels are for the pixels as stored; a camera's note on how it was held does not count.
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise DatasetError(f"image {path} is damaged: it cannot be decoded")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
