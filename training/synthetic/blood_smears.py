"""Synthetic blood smears with exact boxes of the cells.

``python -m training.synthetic.blood_smears --output DIR --count N --seed S`` writes images and a
COCO file. Images are generated from random numbers only, without photographs.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from training.data.sample import AnnotatedImage, FloatArray, Pixels
from training.synthetic import output
from training.synthetic.cell_painting import (
    CellPatch,
    paint_platelet,
    paint_red_cell,
    paint_white_cell,
)

WIDTH, HEIGHT = 640, 480
CLASS_NAMES = ("RBC", "WBC", "Platelets")
RED_CELL, WHITE_CELL, PLATELET = range(3)

_MIN_VISIBLE_PX = 8.0
"""Cells with a smaller visible width or height at the image border are not labelled."""


def render_smear(rng: Generator) -> AnnotatedImage:
    """Render a smear, uint8 (480, 640, 3) RGB, with the boxes of its cells."""
    density = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    stain = np.exp(rng.normal(0.0, 0.1, 3)).astype(np.float32)
    boxes, class_ids = [], []
    for class_id, radius, x, y in _arrange(rng):
        patch = _PAINTERS[class_id](rng, radius)
        box = _blend_patch(patch, stain, density, int(x), int(y))
        if box is not None:
            boxes.append(box)
            class_ids.append(class_id)
    _add_dirt(rng, density)
    return AnnotatedImage(
        pixels=_simulate_camera(rng, density),
        boxes_xywh=np.asarray(boxes, np.float32).reshape(-1, 4),
        class_ids=np.asarray(class_ids, np.int64),
    )


_PAINTERS = {RED_CELL: paint_red_cell, WHITE_CELL: paint_white_cell, PLATELET: paint_platelet}


def _arrange(rng: Generator) -> list[tuple[int, float, float, float]]:
    """Draw (class, radius, x, y) of every cell, bottom layer first."""
    red_radius = rng.uniform(44.0, 56.0)
    counts = (
        (RED_CELL, int(rng.integers(6, 27))),
        (WHITE_CELL, int(rng.choice([0, 1, 2], p=[0.2, 0.65, 0.15]))),
        (PLATELET, int(min(rng.poisson(1.6), 6))),
    )
    # Smallest distance in units of the summed radii: only red cells overlap others of their class.
    closeness = rng.uniform(0.5, 0.95)
    placed: list[tuple[int, float, float, float]] = []
    for class_id, count in reversed(counts):
        for _ in range(count):
            radius = _radius(rng, class_id, red_radius)
            for _attempt in range(12):
                x, y = rng.uniform(-20, WIDTH + 20), rng.uniform(-20, HEIGHT + 20)
                if all(
                    np.hypot(x - px, y - py)
                    > (radius + pr) * (closeness if class_id == pc == RED_CELL else 0.85)
                    for pc, pr, px, py in placed
                ):
                    placed.append((class_id, radius, x, y))
                    break
    return placed[::-1]


def _radius(rng: Generator, class_id: int, red_radius: float) -> float:
    if class_id == RED_CELL:
        return float(red_radius * rng.normal(1.0, 0.09))
    if class_id == WHITE_CELL:
        return float(rng.uniform(58.0, 120.0))
    return float(np.clip(rng.normal(19.0, 4.5), 12.0, 34.0))


def _blend_patch(
    patch: CellPatch, stain: FloatArray, density: FloatArray, x: int, y: int
) -> tuple[float, float, float, float] | None:
    """Blend a patch centered at (x, y) into ``density``; return the box of its visible part."""
    side = patch.coverage.shape[0]
    left, top = x - side // 2, y - side // 2
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side, WIDTH), min(top + side, HEIGHT)
    if x0 >= x1 or y0 >= y1:
        return None
    inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    coverage = patch.coverage[inside]
    below = density[y0:y1, x0:x1]
    below *= 1.0 - patch.opacity * coverage[..., None]
    below += patch.density[inside] * stain
    is_cell = coverage >= 0.5
    columns, rows = np.flatnonzero(is_cell.any(0)), np.flatnonzero(is_cell.any(1))
    if min(columns.size, rows.size) < _MIN_VISIBLE_PX:
        return None
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return float(x0 + columns[0]), float(y0 + rows[0]), float(width), float(height)


def _add_dirt(rng: Generator, density: FloatArray) -> None:
    """Add blurred spots of dust and stain, which are not labelled."""
    for _ in range(rng.poisson(1.5)):
        canvas = np.zeros((41, 41), np.float32)
        axes = (int(rng.integers(2, 8)), int(rng.integers(2, 10)))
        cv2.ellipse(canvas, (20, 20), axes, rng.uniform(0, 180), 0, 360, 1.0, -1)
        spot = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(1.0, 4.0))
        x, y = int(rng.integers(0, WIDTH - 41)), int(rng.integers(0, HEIGHT - 41))
        density[y : y + 41, x : x + 41] += np.float32(rng.uniform(0.1, 0.5)) * spot[..., None]


def _simulate_camera(rng: Generator, density: FloatArray) -> Pixels:
    """Simulate illumination, focus and sensor noise; return uint8 (480, 640, 3)."""
    saturation = np.float32(rng.uniform(0.7, 1.35))
    image = np.exp(-saturation * density)
    lamp = rng.uniform(175.0, 232.0) * np.exp(rng.normal(0.0, 0.035, 3))
    x = np.linspace(-1.0, 1.0, WIDTH, dtype=np.float32)[None, :]
    y = np.linspace(-1.0, 1.0, HEIGHT, dtype=np.float32)[:, None]
    slope_x, slope_y = rng.normal(0.0, 0.05, 2)
    shading = 1.0 + slope_x * x + slope_y * y - rng.uniform(0.0, 0.08) * (x * x + y * y)
    image *= (shading[..., None] * lamp).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.9))
    fine = rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
    image += np.float32(rng.uniform(0.5, 3.0)) * fine[..., None]
    return np.asarray(np.clip(image + 0.5, 0.0, 255.0), np.uint8)


def coco_document(images: Sequence[AnnotatedImage], file_names: Sequence[str]) -> dict[str, Any]:
    """Return COCO instances of rendered images; category ids 1, 2, 3 as in the BCCD dataset."""
    return output.coco_document(
        "Rendered blood smears with exact boxes",
        [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)],
        images,
        file_names,
        [image.boxes_xywh[:, 2:].prod(axis=1).tolist() for image in images],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write rendered images and ``blood_smears.json`` to a directory."""
    args = output.parse_args("training.synthetic.blood_smears", __doc__, argv, "jpg")
    args.output.mkdir(parents=True, exist_ok=True)
    images, names = [], []
    for number in range(1, args.count + 1):
        image = render_smear(np.random.default_rng((args.seed, number)))
        name = f"blood_smear_{number}.{args.format}"
        output.write_image(args.output / name, image.pixels)
        images.append(image)
        names.append(name)
    output.write_json(args.output / "blood_smears.json", coco_document(images, names))


if __name__ == "__main__":
    main()
