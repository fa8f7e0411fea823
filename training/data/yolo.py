"""YOLO data sets for training: ``data.yaml``, images, and one label file per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from labels.errors import DatasetError
from labels.image_files import IMAGE_SUFFIXES
from labels.yolo import read_yolo
from model_export.class_names import COCO_KEYPOINTS, flipped_pairs
from training.data.image_files import NO_PIXELS, Images, check_boxes, image_size
from training.data.sample import AnnotatedImage

_MAX_YAML_BYTES = 1024**2


@dataclass(frozen=True)
class YoloDataset:
    """The content of a ``data.yaml``.

    Attributes:
        names: the classes, by index.
        keypoints: names of the keypoints, empty for boxes.
        keypoint_dimensions: 2 (x, y) or 3 (with visibility).
        can_flip: False where it is unknown which keypoints a horizontal flip exchanges.
        train, validation: images.
    """

    names: tuple[str, ...]
    keypoints: tuple[str, ...]
    keypoint_dimensions: int
    can_flip: bool
    train: tuple[Path, ...]
    validation: tuple[Path, ...]


def read_data_yaml(path: Path) -> YoloDataset:
    """Read ``data.yaml`` with the keys ``path``, ``train``, ``val``, ``names`` and ``kpt_shape``.

    Raises :class:`DatasetError` for a file that is not YAML, has no names, or names images that do
    not exist.
    """
    document = _read_yaml(path)
    keypoints, dimensions, can_flip = _keypoints(document, path)
    return YoloDataset(
        _names(document, path),
        keypoints,
        dimensions,
        can_flip,
        train=_images(document, "train", path),
        validation=_images(document, "val", path),
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_YAML_BYTES + 1)
        if len(content) > _MAX_YAML_BYTES:
            raise DatasetError(f"{path}: has more than {_MAX_YAML_BYTES} bytes")
        document = yaml.safe_load(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: expected keys such as train, val and names")
    return document


def _names(document: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = document.get("names")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(
            f"{path}: names is {names!r:.80}; expected a list of class names, or names by index "
            "from 0"
        )
    return tuple(str(name) for name in names)


def _keypoints(document: dict[str, Any], path: Path) -> tuple[tuple[str, ...], int, bool]:
    """Return names, dimensions, and whether flips are possible.

    Without names, those of pairs in ``flip_idx`` become ``left_1`` and ``right_1``.
    """
    shape = document.get("kpt_shape")
    if shape is None:
        return (), 3, True
    is_pair = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not is_pair or not 1 <= shape[0] <= 1000 or shape[1] not in (2, 3):
        raise DatasetError(f"{path}: kpt_shape is {shape!r:.80}; expected [keypoints, 2 or 3]")
    count = shape[0]
    flip = document.get("flip_idx")
    if flip is not None and (
        not isinstance(flip, list) or sorted(flip) != list(range(count)) or _twice(flip) != flip
    ):
        raise DatasetError(
            f"{path}: flip_idx is {flip!r:.80}; expected the index of the opposite of each of the "
            f"{count} keypoints"
        )
    given = document.get("kpt_names")
    if isinstance(given, dict):  # by class; all classes have the same keypoints
        given = next(iter(given.values()), None)
    if isinstance(given, list) and len(given) == count:
        names = tuple(str(name) for name in given)
    elif count == len(COCO_KEYPOINTS) and flip in (None, _flips_of(COCO_KEYPOINTS)):
        names = COCO_KEYPOINTS
    else:
        names = tuple(
            f"{'' if opposite == i else 'left_' if i < opposite else 'right_'}{min(i, opposite)}"
            for i, opposite in enumerate(flip or range(count))
        )
    can_flip = (flip is None and names == COCO_KEYPOINTS) or flip == _flips_of(names)
    return names, shape[1], can_flip


def _twice(flip: list[int]) -> list[int]:
    """Return ``flip`` if it exchanges pairs."""
    return flip if all(flip[opposite] == i for i, opposite in enumerate(flip)) else []


def _flips_of(names: Sequence[str]) -> list[int]:
    order = list(range(len(names)))
    for left, right in flipped_pairs(names):
        order[left], order[right] = right, left
    return order


def _images(document: dict[str, Any], key: str, path: Path) -> tuple[Path, ...]:
    """Return the images of a split: folders, or text files that list images."""
    entries = document.get(key) or []
    root = path.parent / str(document.get("path") or "")
    images: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = _find(str(entry), (root, path.parent))
        if place is None:
            raise DatasetError(f"{path}: {key} is {entry!r:.200}, which is not in {root}")
        if place.is_dir():
            images += sorted(
                file for file in place.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES
            )
        else:
            images += _listed_images(place, root)
    return tuple(images)


def _find(entry: str, roots: Sequence[Path]) -> Path | None:
    # Roboflow writes ../train/images for folders beside data.yaml.
    names = (entry, entry.removeprefix("../"))
    candidates = (root / name for root in roots for name in names)
    return next((place for place in candidates if place.exists()), None)


def _listed_images(list_file: Path, root: Path) -> list[Path]:
    try:
        lines = list_file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{list_file}: cannot be read as a list of images: {error}") from error
    return [root / line.strip() for line in lines if line.strip()]


def label_file(image: Path) -> Path:
    """Return the label file of an image: the last folder ``images`` becomes ``labels``.

    It is beside the image if there is no such folder.
    """
    parts = list(image.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, f"{image.stem}.txt")


def read_yolo_images(
    paths: Sequence[Path],
    names: Sequence[str],
    classes: Sequence[str],
    keypoint_count: int = 0,
    dimensions: int = 3,
) -> Images:
    """Read the labels of images; an image without a label file has no objects.

    ``names`` are those of ``data.yaml``, and ``classes`` those that are trained. Boxes without an
    area are skipped. Raises :class:`DatasetError` for a class that has no name, and a box outside
    its image.
    """
    return Images([_read(path, names, classes, keypoint_count, dimensions) for path in paths])


def _read(
    path: Path,
    names: Sequence[str],
    classes: Sequence[str],
    keypoint_count: int,
    dimensions: int,
) -> tuple[Path, AnnotatedImage]:
    file = label_file(path)
    labels = read_yolo(file, keypoint_count, dimensions)
    for class_id in labels.class_ids.tolist():
        if class_id >= len(names) or names[class_id] not in classes:
            raise DatasetError(f"{file}: class {class_id} is not among {list(classes)}")
    width, height = image_size(path)
    kept = (labels.boxes_xywh[:, 2:] > 0).all(axis=1)
    boxes = (labels.boxes_xywh[kept] * [width, height, width, height]).astype(np.float32)
    check_boxes(path, boxes, (width, height))
    class_ids = [classes.index(names[class_id]) for class_id in labels.class_ids[kept].tolist()]
    keypoints = (labels.keypoints[kept] * [width, height, 1]).astype(np.float32)
    return path, AnnotatedImage(
        NO_PIXELS,
        boxes,
        np.asarray(class_ids, np.int64),
        keypoints=keypoints if keypoint_count else None,
    )
