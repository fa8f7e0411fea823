"""Pascal VOC annotations: one XML file per image."""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from labels.errors import DatasetError

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """One labelled object.

    Attributes:
        name: the class.
        box_xyxy: pixels, counted from 0, with exclusive ends. The file counts from 1 with inclusive
            ends.
        is_difficult: the file's ``difficult``; False where it is absent.
    """

    name: str
    box_xyxy: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """The labels of one image; ``file_name`` is None and the size 0 where the file has none."""

    file_name: str | None
    width: int
    height: int
    objects: tuple[VocObject, ...]


def read_voc(path: Path) -> VocAnnotation:
    """Read one XML file; the parts of an object (``part``) are not objects.

    Raises :class:`DatasetError` for a file that is not XML, a number that cannot be parsed and a
    box without an area.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DatasetError(f"{path}: cannot be read as XML: {error}") from error
    return VocAnnotation(
        root.findtext("filename") or None,
        _integer(root, "size/width", str(path)),
        _integer(root, "size/height", str(path)),
        tuple(
            _object(entry, f"{path}: object {number}")
            for number, entry in enumerate(root.iter("object"), start=1)
        ),
    )


def _object(entry: ElementTree.Element, where: str) -> VocObject:
    name = (entry.findtext("name") or "").strip()
    return VocObject(name, _box(entry, where), bool(_integer(entry, "difficult", where)))


def _integer(element: ElementTree.Element, path: str, where: str) -> int:
    text = element.findtext(path, "0")
    try:
        return int(text)
    except ValueError as error:
        raise DatasetError(f"{where}: {path} {text!r} is not an integer") from error


def _box(entry: ElementTree.Element, where: str) -> tuple[float, float, float, float]:
    texts = [entry.findtext(f"bndbox/{side}") for side in _SIDES]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError as error:
        raise DatasetError(f"{where}: bndbox {texts} is not four numbers") from error
    is_finite = all(math.isfinite(value) for value in (left, top, right, bottom))
    if not is_finite or right < left or bottom < top:
        raise DatasetError(f"{where}: bndbox {texts} is not a box")
    return left - 1, top - 1, right, bottom
