"""KITTI's 3D object labels: one text file per image, one line per object."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.data.image_files import (
    NO_PIXELS,
    DatasetError,
    Images,
    check_boxes,
    find_image,
    image_size,
    read_names,
)
from training.data.sample import ALL_CLASSES, AnnotatedImage, Boxes3D

_SIMILAR = {"Van": "Car", "Truck": "Car", "Person_sitting": "Pedestrian"}
"""What is neither this class nor something else; the authors learn nothing from it."""

_UNKNOWN = "DontCare"
_NUMBERS = 14  # after the class's name; a fifteenth, a score, is not looked at


def read_kitti_split(
    list_file: Path, image_dir: Path, label_dir: Path, classes: Sequence[str]
) -> Images:
    """Read the labels of all images whose names stand in ``list_file``, one per line.

    ``DontCare`` regions, and vans, trucks and sitting persons where cars or pedestrians are
    learned, become ignored regions, as with the authors. Other classes that are not wanted are
    background. Raises :class:`DatasetError` with the file and the line.
    """
    return Images(
        [_read(find_image(image_dir, name), label_dir, classes) for name in read_names(list_file)]
    )


def _read(path: Path, label_dir: Path, classes: Sequence[str]) -> tuple[Path, AnnotatedImage]:
    label_file = label_dir / f"{path.stem}.txt"
    try:
        lines = label_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{label_file}: not readable as text: {error}") from error
    objects: list[tuple[int, list[float]]] = []
    ignored: list[tuple[int, list[float]]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, numbers = _parse(line, f"{label_file}: line {number}")
        left, top, right, bottom = numbers[3:7]
        if right <= left or bottom <= top:
            continue
        if name in classes:
            objects.append((classes.index(name), numbers))
        elif name == _UNKNOWN:
            ignored.append((ALL_CLASSES, numbers))
        elif _SIMILAR.get(name) in classes:
            ignored.append((classes.index(_SIMILAR[name]), numbers))
    rows = _rows(objects)
    boxes, ignored_boxes = _boxes(rows), _boxes(_rows(ignored))
    check_boxes(path, boxes, image_size(path))
    return path, AnnotatedImage(
        NO_PIXELS,
        boxes,
        np.asarray([class_id for class_id, _ in objects], np.int64),
        boxes_3d=Boxes3D(
            depths_m=rows[:, 12],
            dimensions_m=rows[:, 7:10],
            alphas_rad=rows[:, 2],
        ),
        ignored_xywh=ignored_boxes,
        ignored_class_ids=np.asarray([class_id for class_id, _ in ignored], np.int64),
    )


def _parse(line: str, where: str) -> tuple[str, list[float]]:
    name, *texts = line.split()
    try:
        numbers = [float(text) for text in texts]
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error
    if len(numbers) < _NUMBERS or not np.isfinite(numbers).all():
        raise DatasetError(
            f"{where}: {len(numbers)} numbers after {name!r}, expected {_NUMBERS} finite ones: "
            "truncation, occlusion, alpha, box (4), dimensions (3), location (3), rotation"
        )
    return name, numbers[:_NUMBERS]


def _rows(objects: Sequence[tuple[int, list[float]]]) -> np.ndarray:
    return np.asarray([numbers for _, numbers in objects], np.float32).reshape(-1, _NUMBERS)


def _boxes(rows: np.ndarray) -> np.ndarray:
    """Left, top, width, height of label rows, float32 (N, 4)."""
    return np.concatenate([rows[:, 3:5], rows[:, 5:7] - rows[:, 3:5]], axis=1)
