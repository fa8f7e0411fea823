"""Rendered blood smears: as many labelled training images as wanted, with exact boxes.

``python -m training.synthetic.blood_smears --output DIR --count N --seed S`` writes images and a COCO file.
Everything is drawn from the random generator alone; no photograph enters.
"""

import json
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator

from training.data.sample import AnnotatedImage, FloatArray, Pixels
from training.synthetic.cell_painting import (
    CellPatch,
    paint_platelet,
    paint_red_cell,
    paint_white_cell,
)
from training.synthetic.output import read_options, write_image

WIDTH, HEIGHT = 640, 480
CLASS_NAMES = ("RBC", "WBC", "Platelets")
RED_CELL, WHITE_CELL, PLATELET = range(3)

_MIN_VISIBLE_PX = 8.0
"""A cell of which the border leaves less than this in either direction gets no box."""


def render_smear(rng: Generator) -> AnnotatedImage:
    """Render one smear, uint8 (480, 640, 3) RGB, with the boxes of all cells in it."""
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
    """Choose (class, radius, x, y) of every cell, lowest layer first."""
    red_radius = rng.uniform(44.0, 56.0)
    counts = (
        (RED_CELL, int(rng.integers(6, 27))),
        (WHITE_CELL, int(rng.choice([0, 1, 2], p=[0.2, 0.65, 0.15]))),
        (PLATELET, int(min(rng.poisson(1.6), 6))),
    )
    # Closest approach in units of the summed radii: red cells stack, white cells push others away.
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
    """Lay a patch centered at (x, y) on ``density``; return the box of its visible part."""
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
    belongs = coverage >= 0.5
    columns, rows = np.flatnonzero(belongs.any(0)), np.flatnonzero(belongs.any(1))
    if min(columns.size, rows.size) < _MIN_VISIBLE_PX:
        return None
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return float(x0 + columns[0]), float(y0 + rows[0]), float(width), float(height)


def _add_dirt(rng: Generator, density: FloatArray) -> None:
    """Blurred dust and stain spots, unlabelled: what a detector must learn to pass over."""
    for _ in range(rng.poisson(1.5)):
        canvas = np.zeros((41, 41), np.float32)
        axes = (int(rng.integers(2, 8)), int(rng.integers(2, 10)))
        cv2.ellipse(canvas, (20, 20), axes, rng.uniform(0, 180), 0, 360, 1.0, -1)
        spot = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(1.0, 4.0))
        x, y = int(rng.integers(0, WIDTH - 41)), int(rng.integers(0, HEIGHT - 41))
        density[y : y + 41, x : x + 41] += np.float32(rng.uniform(0.1, 0.5)) * spot[..., None]


def _simulate_camera(rng: Generator, density: FloatArray) -> Pixels:
    """Light through the smear: background tint, uneven lamp, focus, sensor noise."""
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


def coco_document(images: Sequence[AnnotatedImage], file_names: Sequence[str]) -> dict[str, object]:
    """COCO instances of rendered images; category ids 1, 2, 3 as in the BCCD data set."""
    image_entries: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, (image, name) in enumerate(zip(images, file_names, strict=True), start=1):
        height, width = image.pixels.shape[:2]
        image_entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for box, class_id in zip(image.boxes_xywh.tolist(), image.class_ids.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "Rendered blood smears with exact boxes"},
        "images": image_entries,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: write rendered images and ``blood_smears.json`` into a directory."""
    options = read_options("training.synthetic.blood_smears", __doc__, arguments, "jpg")
    options.output.mkdir(parents=True, exist_ok=True)
    images, names = [], []
    for number in range(1, options.count + 1):
        image = render_smear(np.random.default_rng((options.seed, number)))
        name = f"blood_smear_{number}.{options.format}"
        write_image(options.output / name, image.pixels)
        images.append(image)
        names.append(name)
    document = json.dumps(coco_document(images, names), indent=1)
    (options.output / "blood_smears.json").write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
