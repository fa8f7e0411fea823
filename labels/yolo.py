"""Labels of YOLO: one text file per image, with coordinates relative to its width and height."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labels.errors import DatasetError

_MAX_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class YoloLabels:
    """The objects of one image.

    Attributes:
        class_ids: int64 (n,), indices of the names in ``data.yaml``.
        boxes_xywh: float64 (n, 4), left, top, width, height; 0 to 1.
        keypoints: float64 (n, keypoints, 3), x, y (0 to 1) and COCO's visibility.
    """

    class_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    keypoints: NDArray[np.float64]


def read_yolo(path: Path, keypoints: int = 0, dimensions: int = 3) -> YoloLabels:
    """Read one text file; a file that does not exist has no objects.

    A line is a class, then a box (center, size) and ``keypoints`` of 2 or 3 ``dimensions``. Without
    keypoints, three points or more are a polygon, of which the bounds are returned. Keypoints at
    (0, 0) are unlabelled. Raises :class:`DatasetError` with the file and the line.
    """
    if not path.exists():
        lines = []
    else:
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise DatasetError(f"{path}: has more than {_MAX_BYTES} bytes")
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: cannot be read as text: {error}") from error
    rows = [
        _parse(line, f"{path}: line {number}", keypoints, dimensions)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return YoloLabels(
        np.array([class_id for class_id, _, _ in rows], np.int64),
        np.array([box for _, box, _ in rows], np.float64).reshape(-1, 4),
        np.array([points for _, _, points in rows], np.float64).reshape(len(rows), keypoints, 3),
    )


def _parse(
    line: str, where: str, keypoints: int, dimensions: int
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    try:
        numbers = [float(text) for text in line.split()]
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error
    class_id, values = numbers[0], np.array(numbers[1:])
    if not np.isfinite(numbers).all() or class_id < 0 or class_id != int(class_id):
        raise DatasetError(
            f"{where}: expected an index of a class and finite numbers, not {line[:80]!r}"
        )
    is_polygon = not keypoints and len(values) >= 6 and len(values) % 2 == 0
    if not is_polygon and len(values) != 4 + keypoints * dimensions:
        expected = f"4 and {keypoints} x {dimensions} of keypoints" if keypoints else "4"
        raise DatasetError(f"{where}: {len(values)} numbers after the class, expected {expected}")
    if is_polygon:
        low, high = values.reshape(-1, 2).min(axis=0), values.reshape(-1, 2).max(axis=0)
        return int(class_id), np.hstack([low, high - low]), np.zeros((0, 3))
    box = np.hstack([values[:2] - values[2:4] / 2, values[2:4]])
    points = values[4:].reshape(keypoints, dimensions)
    is_labelled = (points[:, :2] != 0).any(axis=1)
    visibility = points[:, 2] if dimensions == 3 else np.full(keypoints, 2.0)
    return int(class_id), box, np.column_stack([points[:, :2], visibility * is_labelled])
