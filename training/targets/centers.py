"""Training targets of *Objects as Points* (Zhou et al. 2019, sections 3 and 4).

Boxes are in pixels of the network input, targets in cells of the output maps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.sample import FloatArray, IntArray

MIN_OVERLAP = 0.7
"""Smallest IoU with the object of a box whose corners are off by the radius (CornerNet)."""


@dataclass(frozen=True)
class CenterTargets:
    """Targets of one image with ``max_objects`` object slots.

    Attributes:
        heatmap: float32 (classes, H/4, W/4), 1 at object centers, Gaussian around them.
        cells: int64 (max_objects,), flat index ``y * W/4 + x`` of each object's center cell.
        present: float32 (max_objects,), 1 for objects and 0 for unused slots.
        size: float32 (max_objects, 2), box width and height in cells.
        offset: float32 (max_objects, 2), center minus its cell, 0...1.
    """

    heatmap: FloatArray
    cells: IntArray
    present: FloatArray
    size: FloatArray
    offset: FloatArray


def gaussian_radius(height: float, width: float, min_overlap: float = MIN_OVERLAP) -> float:
    """Return the radius in cells within which a shifted box keeps ``min_overlap`` IoU.

    The three cases are those of CornerNet (section 3.2). All roots are ``(b + sqrt(...)) / 2``, as
    in the code of *Objects as Points*; the correct roots would divide by ``2 a``.
    """
    total, area = height + width, height * width
    cases = (
        (1.0, total, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, 2 * total, (1 - min_overlap) * area),
        (4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * area),
    )
    return float(min((b + np.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases))


def corrected_gaussian_radius(height: float, width: float, min_overlap: float) -> float:
    """Return the radius of the same three cases with the roots of *CornerNet*'s code."""
    total, area = height + width, height * width
    overlap = min_overlap
    both_shifted = (total - np.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    inside = (total - np.sqrt(total**2 - 4 * area * (1 - overlap))) / 4
    b = -2 * overlap * total
    outside = (b + np.sqrt(b * b - 16 * overlap * (overlap - 1) * area)) / (8 * overlap)
    return float(min(both_shifted, inside, outside))


def draw_gaussian(
    heatmap: NDArray[np.float32], x: int, y: int, radius: int, sigmas: int = 6
) -> None:
    """Draw a Gaussian with peak 1 at (x, y) into ``heatmap``, float32 (H, W).

    Larger values are kept. The diameter ``2 radius + 1`` has ``sigmas`` standard deviations;
    outside of the radius the Gaussian is 0.
    """
    height, width = heatmap.shape
    x0, x1 = max(x - radius, 0), min(x + radius + 1, width)
    y0, y1 = max(y - radius, 0), min(y + radius + 1, height)
    sigma = (2 * radius + 1) / sigmas
    along_x = np.exp(-((np.arange(x0, x1) - x) ** 2) / (2 * sigma * sigma))
    along_y = np.exp(-((np.arange(y0, y1) - y) ** 2) / (2 * sigma * sigma))
    region = heatmap[y0:y1, x0:x1]
    np.maximum(region, np.outer(along_y, along_x).astype(np.float32), out=region)


def center_targets(
    boxes_xywh: FloatArray,
    class_ids: IntArray,
    *,
    num_classes: int,
    map_height: int,
    map_width: int,
    stride: int,
    max_objects: int,
    round_up: bool = True,
) -> CenterTargets:
    """Encode boxes, float32 (N, 4) in network input pixels, as maps of the given size.

    Boxes must be inside the input. With ``round_up`` the radius of a Gaussian is that of the box
    size rounded up to whole cells, which the reference implementation does except for 3D boxes.

    Raises ``ValueError`` for more than ``max_objects`` objects.
    """
    check_count(len(boxes_xywh), max_objects)
    targets = CenterTargets(
        heatmap=np.zeros((num_classes, map_height, map_width), np.float32),
        cells=np.zeros(max_objects, np.int64),
        present=np.zeros(max_objects, np.float32),
        size=np.zeros((max_objects, 2), np.float32),
        offset=np.zeros((max_objects, 2), np.float32),
    )
    limit = np.array([map_width - 1, map_height - 1])
    for index, (box, class_id) in enumerate(zip(boxes_xywh / stride, class_ids, strict=True)):
        center = box[:2] + box[2:] / 2
        cell = np.clip(center.astype(np.int64), 0, limit)
        radius = center_radius(np.ceil(box[2:]) if round_up else box[2:])
        draw_gaussian(targets.heatmap[class_id], int(cell[0]), int(cell[1]), radius)
        targets.cells[index] = cell[1] * map_width + cell[0]
        targets.present[index] = 1.0
        targets.size[index] = box[2:]
        targets.offset[index] = center - cell
    return targets


def check_count(objects: int, max_objects: int) -> None:
    """Raise ``ValueError`` for too many objects; dropped ones would be trained as background."""
    if objects > max_objects:
        raise ValueError(f"{objects} objects in one image; at most {max_objects} fit")


def center_radius(size: FloatArray) -> int:
    """Return the integer radius in cells for a box of this width and height, float32 (2,)."""
    return max(0, int(gaussian_radius(float(size[1]), float(size[0]))))
