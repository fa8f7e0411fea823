"""Rendered people: as many pictures of articulated figures with 17 joints as wanted.

``python -m training.figures --output DIR --count N --seed S`` writes pictures and a COCO file.
Everything is drawn from the random generator alone; no photograph and no person enters.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model_export.classes import COCO_JOINTS, COCO_SKELETON
from training.annotated_image import AnnotatedImage, FloatArray
from training.scenery import paint_foreground, paint_room, photograph
from training.skeletons import Body, Limb, random_body

WIDTH, HEIGHT = 256, 256
NOBODY = -1
HIDDEN, VISIBLE = 1, 2
"""COCO's visibilities of joints that are labelled."""

_MIN_VISIBLE_PX = 60
"""A person of whom fewer pixels show is not labelled."""

Owners = NDArray[np.int32]
"""int32 (H, W): ``person * 100 + limb`` that is seen in each pixel, or NOBODY."""

_LIMBS_PER_PERSON = 100


@dataclass(frozen=True)
class Person:
    """A body in the picture: ``height_px`` tall, its waist at ``waist_px``, x and y."""

    body: Body
    waist_px: tuple[float, float]
    height_px: float
    colours: Mapping[str, FloatArray]

    def place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the body, (..., 3), in pixels, (..., 2)."""
        placed: NDArray[np.float64] = points[..., :2] * self.height_px + self.waist_px
        return placed


def render_figures(rng: Generator) -> AnnotatedImage:
    """Render one picture, uint8 (256, 256, 3) RGB, with boxes and joints of the people in it."""
    return _render(rng)[0]


def _render(rng: Generator) -> tuple[AnnotatedImage, list[int]]:
    """The picture, and how many pixels of each labelled person show."""
    canvas = paint_room(rng, WIDTH, HEIGHT)
    owners = np.full((HEIGHT, WIDTH), NOBODY, np.int32)
    people = [_random_person(rng) for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])))]
    people.sort(key=lambda person: person.height_px)  # who is nearer is taller
    for index, person in enumerate(people):
        _paint(rng, canvas, owners, index, person)
    owners[paint_foreground(rng, canvas)] = NOBODY
    boxes, joints, areas = [], [], []
    for index, person in enumerate(people):
        belongs = owners // _LIMBS_PER_PERSON == index
        if belongs.sum() >= _MIN_VISIBLE_PX:
            boxes.append(_box_around(belongs))
            joints.append(_label_joints(person, index, owners))
            areas.append(int(belongs.sum()))
    image = AnnotatedImage(
        photograph(rng, canvas),
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(boxes), np.int64),
        joints=np.asarray(joints, np.float32).reshape(-1, len(COCO_JOINTS), 3),
    )
    return image, areas


def _random_person(rng: Generator) -> Person:
    # Smaller ones have faces of a few pixels, in which no eye can be told from the other.
    height_px = float(np.exp(rng.uniform(np.log(120), np.log(240))))
    waist = (float(rng.uniform(0.15, 0.85) * WIDTH), float(rng.uniform(0.4, 0.65) * HEIGHT))
    return Person(random_body(rng), waist, height_px, _clothes(rng))


def _clothes(rng: Generator) -> dict[str, FloatArray]:
    """A colour per kind of limb, RGB 0...255."""

    def colour() -> FloatArray:
        return rng.uniform(15, 240, 3).astype(np.float32)

    skin = np.array([225, 172, 140], np.float32) * np.float32(rng.uniform(0.3, 1.08))
    shirt, trousers, shoes = colour(), colour(), colour() * np.float32(0.6)
    return {
        "neck": skin,
        "head": skin,
        "hand": skin,
        "torso": shirt,
        "sleeve": shirt if rng.random() < 0.85 else skin,
        "forearm": shirt if rng.random() < 0.5 else skin,
        "thigh": trousers,
        "shin": trousers if rng.random() < 0.7 else skin,
        "foot": shoes,
        "hair": colour() * np.float32(rng.uniform(0.1, 0.7)),
        "stripes": colour() if rng.random() < 0.4 else shirt,
    }


def _paint(rng: Generator, canvas: FloatArray, owners: Owners, index: int, person: Person) -> None:
    """Paint limbs from the farthest to the nearest, each with a soft shade of its own."""
    order = sorted(
        range(len(person.body.limbs)),
        key=lambda i: _nearness(person.body.limbs[i]),
    )
    stripe_px = float(rng.uniform(0.025, 0.07)) * person.height_px
    light = float(rng.uniform(-0.35, 0.35))
    for number in order:
        limb = person.body.limbs[number]
        mask = _silhouette(person, limb)
        colour = person.colours[limb.kind] * np.float32(rng.uniform(0.85, 1.1))
        rows, columns = np.nonzero(mask)
        if not len(rows):
            continue
        middle = person.place((limb.start + limb.end) / 2)
        radius = max(limb.radii) * person.height_px
        shade = 1 + light * np.clip((columns - middle[0]) / radius, -1, 1)
        paint = shade[:, None] * colour
        if limb.kind in ("torso", "sleeve"):
            striped = (rows // max(2.0, stripe_px)).astype(int) % 2 == 1
            paint[striped] = shade[striped, None] * person.colours["stripes"]
        canvas[rows, columns] = paint
        owners[rows, columns] = index * _LIMBS_PER_PERSON + number
        if limb.kind == "head":
            _paint_face(canvas, mask, person)


def _nearness(limb: Limb) -> float:
    # A head hides the neck that ends in its middle; shirts hang over trousers.
    extra = {"head": 0.05, "torso": 0.01}.get(limb.kind, 0.0)
    return float(limb.start[2] + limb.end[2]) / 2 + extra


def _silhouette(person: Person, limb: Limb) -> NDArray[np.bool_]:
    """Bool (H, W): the convex hull of two discs."""
    first, second = person.place(limb.start), person.place(limb.end)
    radii = [radius * person.height_px for radius in limb.radii]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline = np.concatenate([first + radii[0] * circle, second + radii[1] * circle])
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    hull = cv2.convexHull(outline.astype(np.float32))
    # Four more bits: outlines that are not rounded to whole pixels.
    cv2.fillConvexPoly(mask, (hull * 16).round().astype(np.int32), 1, shift=4)
    return mask.astype(bool)


def _paint_face(canvas: FloatArray, mask: NDArray[np.bool_], person: Person) -> None:
    """Hair where no face is, eyes and nose where they are seen."""
    head = next(limb for limb in person.body.limbs if limb.kind == "head")
    center, radius = person.place(head.start), head.radii[0] * person.height_px
    forward = (person.body.joints[0] - head.start) / 0.07
    rows, columns = np.nonzero(mask)
    away = np.stack([columns, rows], axis=1) - center
    depth = np.sqrt(np.clip(radius**2 - (away**2).sum(axis=1), 0, None))
    towards_face = (away @ forward[:2] + depth * forward[2]) / radius
    is_hair = (towards_face < 0.15) | (away[:, 1] < -0.45 * radius)
    canvas[rows[is_hair], columns[is_hair]] = person.colours["hair"]
    for joint, shade, size in ((1, 0.2, 0.14), (2, 0.2, 0.14), (0, 0.75, 0.16)):
        if person.body.joints[joint][2] > head.start[2]:
            x, y = person.place(person.body.joints[joint])
            spot = np.zeros(mask.shape, np.uint8)
            cv2.circle(
                spot, (round(x * 16), round(y * 16)), round(16 * size * radius), 1, -1, shift=4
            )
            canvas[(spot > 0) & mask] *= np.float32(shade)


def _label_joints(person: Person, index: int, owners: Owners) -> NDArray[np.float64]:
    """Float64 (17, 3): x, y and visibility; 0 for joints outside of the picture."""
    places = person.place(person.body.joints)
    shown_by: dict[int, set[int]] = {joint: set() for joint in range(len(places))}
    for number, limb in enumerate(person.body.limbs):
        for joint in limb.joints:
            shown_by[joint].add(index * _LIMBS_PER_PERSON + number)
    head_depth = person.body.limbs[1].start[2]
    rows = np.zeros((len(places), 3))
    for joint, (x, y) in enumerate(places):
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        if 0 <= column < WIDTH and 0 <= row < HEIGHT:
            seen = int(owners[row, column]) in shown_by[joint]
            # What is on the far side of the head is hidden by it.
            behind = joint < 5 and person.body.joints[joint][2] < head_depth - 0.02
            # Half a pixel: centers of pixels have whole numbers here, their edges in labels.
            rows[joint] = (x + 0.5, y + 0.5, VISIBLE if seen and not behind else HIDDEN)
    return rows


def _box_around(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return float(columns[0]), float(rows[0]), float(width), float(height)


def coco_document(
    images: Sequence[tuple[AnnotatedImage, Sequence[int]]], file_names: Sequence[str]
) -> dict[str, Any]:
    """COCO keypoints of rendered pictures, each with the visible pixels of its people."""
    image_entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, ((image, areas), name) in enumerate(
        zip(images, file_names, strict=True), start=1
    ):
        assert image.joints is not None
        image_entries.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for box, joints, area in zip(image.boxes_xywh, image.joints, areas, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": box.tolist(),
                    "area": area,
                    "iscrowd": 0,
                    "keypoints": joints.round(2).ravel().tolist(),
                    "num_keypoints": int((joints[:, 2] > 0).sum()),
                }
            )
    person = {
        "id": 1,
        "name": "person",
        "keypoints": list(COCO_JOINTS),
        "skeleton": [[first + 1, second + 1] for first, second in COCO_SKELETON],
    }
    return {
        "info": {"description": "Rendered figures with exact joints"},
        "images": image_entries,
        "annotations": annotations,
        "categories": [person],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: write rendered pictures and ``figures.json`` into a directory."""
    parser = argparse.ArgumentParser(prog="python -m training.figures", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    images, names = [], []
    for number in range(1, options.count + 1):
        rendered = _render(np.random.default_rng((options.seed, number)))
        name = f"figures_{number}.png"
        bgr = cv2.cvtColor(rendered[0].pixels, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(options.output / name), bgr):
            raise OSError(f"could not write {options.output / name}")
        images.append(rendered)
        names.append(name)
    document = json.dumps(coco_document(images, names), indent=1)
    (options.output / "figures.json").write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
