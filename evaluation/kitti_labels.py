"""KITTI's object labels: ``label_2/*.txt`` with ``calib/*.txt`` beside the directory."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.ground_truth import Boxes3DLabels, GroundTruth, LabelledImage

DONT_CARE = "DontCare"
_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_kitti(directory: Path, image_dir: Path) -> GroundTruth:
    """Read a directory of label files; an image has the stem of its label file.

    For COCO's metrics, regions that nobody labelled are crowds of every class.
    """
    images, space = [], {}
    for image_id, path in enumerate(sorted(directory.glob("*.txt")), start=1):
        space[image_id] = _read_labels(path)
        images.append(
            LabelledImage(
                image_id, _image_of(image_dir, path.stem), _projection(directory, path.name)
            )
        )
    names = sorted({name for labels in space.values() for name in labels.types} - {DONT_CARE})
    categories = {name: number for number, name in enumerate(names, start=1)}
    annotations = [
        {**label, "id": number}
        for number, label in enumerate(
            (
                label
                for image_id, labels in space.items()
                for label in _as_coco(image_id, labels, categories)
            ),
            start=1,
        )
    ]
    return GroundTruth(
        images,
        {
            "info": {},
            "images": [{"id": one.image_id, "file_name": one.path.name} for one in images],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
        },
        space,
        other_classes_are_left_out=True,
    )


def _as_coco(
    image_id: int, labels: Boxes3DLabels, categories: dict[str, int]
) -> list[dict[str, Any]]:
    found = []
    for name, (x1, y1, x2, y2) in zip(labels.types, labels.boxes_xyxy.tolist(), strict=True):
        crowd = name == DONT_CARE
        found += [
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(crowd),
            }
            for category in (categories.values() if crowd else [categories[name]])
        ]
    return found


def _read_labels(path: Path) -> Boxes3DLabels:
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) not in (15, 16):  # some copies carry a score
            raise EvaluationError(f"{path}, line {number}: {len(row)} words, not 15.")
    numbers = np.array([row[1:15] for row in rows], np.float64).reshape(-1, 14)
    return Boxes3DLabels(
        tuple(row[0] for row in rows),
        numbers[:, 0],
        numbers[:, 1],
        numbers[:, 2],
        numbers[:, 3:7],
        numbers[:, 7:10],
        numbers[:, 10:13],
        numbers[:, 13],
    )


def _projection(labels: Path, name: str) -> tuple[float, ...] | None:
    """The matrix of the left colour camera, P2; None where there are no calibrations."""
    path = labels.parent / "calib" / name
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("P2:"):
            matrix: NDArray[np.float64] = np.array(line.split()[1:], np.float64)
            if matrix.shape == (12,):
                return tuple(matrix.tolist())
    raise EvaluationError(f"{path} has no line P2 with 12 numbers.")


def _image_of(image_dir: Path, stem: str) -> Path:
    for suffix in _SUFFIXES:
        if (image_dir / f"{stem}{suffix}").is_file():
            return image_dir / f"{stem}{suffix}"
    return image_dir / f"{stem}{_SUFFIXES[0]}"
