"""KITTI's object labels: ``label_2/*.txt``, one line per object, and ``calib/*.txt``."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labels.errors import DatasetError

DONT_CARE = "DontCare"
"""Type of a region whose objects are not labelled."""
_NUMBERS = 14
"""After the type. Some copies of the labels have a score as a fifteenth number; it is not used."""


@dataclass(frozen=True)
class KittiLabels:
    """The objects of one image, in the frame of its camera (x right, y down, z forward).

    Attributes:
        types: names of the classes, :data:`DONT_CARE` among them.
        truncations: float64 (n,), 0 to 1.
        occlusions: float64 (n,), 0 (visible) to 3 (unknown).
        alphas: float64 (n,), observation angles in radians.
        boxes_xyxy: float64 (n, 4) in pixels.
        dimensions_hwl: float64 (n, 3) in metres.
        locations: float64 (n, 3), the center of the bottom face in metres.
        rotations_y: float64 (n,) in radians.
    """

    types: tuple[str, ...]
    truncations: NDArray[np.float64]
    occlusions: NDArray[np.float64]
    alphas: NDArray[np.float64]
    boxes_xyxy: NDArray[np.float64]
    dimensions_hwl: NDArray[np.float64]
    locations: NDArray[np.float64]
    rotations_y: NDArray[np.float64]


def read_kitti(path: Path) -> KittiLabels:
    """Read the labels of one image.

    Raises :class:`DatasetError` with the file and the line.
    """
    types, rows = [], []
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip():
            name, numbers = _parse(line, f"{path}: line {number}")
            types.append(name)
            rows.append(numbers)
    values = np.array(rows, np.float64).reshape(-1, _NUMBERS)
    return KittiLabels(
        tuple(types),
        truncations=values[:, 0],
        occlusions=values[:, 1],
        alphas=values[:, 2],
        boxes_xyxy=values[:, 3:7],
        dimensions_hwl=values[:, 7:10],
        locations=values[:, 10:13],
        rotations_y=values[:, 13],
    )


def read_projection(path: Path) -> tuple[float, ...]:
    """Read the 3 x 4 matrix of the left colour camera (P2), row by row, from a calibration file.

    Raises :class:`DatasetError`.
    """
    for line in _read_lines(path):
        if line.startswith("P2:"):
            try:
                matrix = tuple(float(text) for text in line.split()[1:])
            except ValueError as error:
                raise DatasetError(f"{path}: P2: {error}") from error
            if len(matrix) == 12:
                return matrix
    raise DatasetError(f"{path}: has no line P2 with 12 numbers")


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as text: {error}") from error


def _parse(line: str, where: str) -> tuple[str, list[float]]:
    name, *texts = line.split()
    try:
        numbers = [float(text) for text in texts]
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error
    if len(numbers) not in (_NUMBERS, _NUMBERS + 1) or not np.isfinite(numbers).all():
        raise DatasetError(
            f"{where}: {len(numbers)} numbers after {name!r}, expected {_NUMBERS} finite ones: "
            "truncation, occlusion, alpha, box (4), dimensions (3), location (3), rotation"
        )
    return name, numbers[:_NUMBERS]
