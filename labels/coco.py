"""COCO annotation files (``instances_*.json``, ``person_keypoints_*.json``)."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labels.errors import DatasetError

_MEMBERS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoDataset:
    """The three lists of a COCO file, in the file's order.

    Attributes:
        path: the file.
        images: each with a unique ``id`` and a ``file_name``.
        annotations: each with ``image_id`` and ``category_id`` of this file, and ``bbox``: left,
            top, width, height in pixels.
        categories: each with ``id`` and ``name``, a string.
    """

    path: Path
    images: Sequence[Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]


def read_coco(path: Path) -> CocoDataset:
    """Read a COCO file; :func:`check_annotations` checks the annotations.

    Raises :class:`DatasetError` for a file that is not COCO JSON, a missing field of an image or a
    category, and an image id that occurs twice.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: not a COCO file: the JSON is not an object")
    missing = [name for name in _MEMBERS if name not in document]
    if missing:
        raise DatasetError(f"{path}: not a COCO file: no {', '.join(missing)}")
    with _translated_errors(path):
        images = document["images"]
        categories = [
            {**category, "name": str(category["name"])} for category in document["categories"]
        ]
        if len({image["id"] for image in images}) < len(images):
            raise DatasetError(f"{path}: two images have the same id")
        for image in images:
            if not isinstance(image["file_name"], str):
                raise DatasetError(f"{path}: image {image['id']}: file_name is not a string")
        return CocoDataset(path, images, document["annotations"], categories)


def check_annotations(dataset: CocoDataset) -> None:
    """Check the annotations of ``dataset``.

    Raises :class:`DatasetError` for a missing field, an annotation of an unknown image or category,
    and a box that is not four finite numbers.
    """
    with _translated_errors(dataset.path):
        _check_references(dataset, "image", {image["id"] for image in dataset.images})
        _check_references(dataset, "category", {entry["id"] for entry in dataset.categories})
        for number, annotation in enumerate(dataset.annotations, start=1):
            box = annotation["bbox"]
            if len(box) != 4 or not all(math.isfinite(value) for value in box):
                where = _name_of(dataset, number, annotation)
                raise DatasetError(f"{where}: bbox {box} is not four finite numbers")


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    """Raise :class:`DatasetError` for a field that is missing or has another type."""
    try:
        yield
    except KeyError as error:
        raise DatasetError(f"{path}: cannot be read: {error.args[0]!r} is missing") from error
    except TypeError as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _check_references(dataset: CocoDataset, kind: str, known: Collection[Any]) -> None:
    key, listed_under = f"{kind}_id", "images" if kind == "image" else "categories"
    unknown = [
        (number, annotation)
        for number, annotation in enumerate(dataset.annotations, start=1)
        if annotation[key] not in known
    ]
    if unknown:
        number, annotation = unknown[0]
        raise DatasetError(
            f"{_name_of(dataset, number, annotation)}: {kind} {annotation[key]} is not listed "
            f"under {listed_under} ({len(unknown)} annotations belong to no {kind} of the file)"
        )


def _name_of(dataset: CocoDataset, number: int, annotation: Mapping[str, Any]) -> str:
    """Return the file and the annotation's id, or its number in the file where it has no id."""
    return f"{dataset.path}: annotation {annotation.get('id', f'number {number}')}"
