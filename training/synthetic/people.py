"""Synthetic images of people with COCO's 17 keypoints.

``python -m training.synthetic.people --output DIR --count N --seed S`` writes images and a COCO
file. Images are generated from random numbers only, without photographs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model_export.class_names import COCO_KEYPOINTS, COCO_SKELETON
from training.data.sample import AnnotatedImage, FloatArray
from training.synthetic import output
from training.synthetic.scenery import paint_foreground, paint_room, simulate_camera
from training.synthetic.shapes import unit_circle
from training.synthetic.skeletons import Body, Limb, random_body

WIDTH, HEIGHT = 256, 256
NO_PERSON = -1
HIDDEN, VISIBLE = 1, 2
"""COCO's visibility of labelled keypoints."""

_MIN_DISTANCE_PX = 50
"""Smallest horizontal distance between the waists of two people."""

_MIN_VISIBLE_PX = 60
"""People with fewer visible pixels are not labelled."""

InstanceMap = NDArray[np.int32]
"""int32 (H, W): ``person * 100 + limb`` visible in each pixel, or NO_PERSON."""

_LIMBS_PER_PERSON = 100

PixelIndices = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and columns of pixels."""

_CIRCLE = unit_circle(24)

_ROUNDNESS = 0.45
"""Share of its brightness that a limb loses at its edge."""


@dataclass(frozen=True)
class Person:
    """A body in the image: its height, the position (x, y) of its waist, and colours by limb."""

    body: Body
    waist_px: tuple[float, float]
    height_px: float
    colours: Mapping[str, FloatArray]

    def to_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points of the body, (..., 3), to pixels, (..., 2)."""
        pixels: NDArray[np.float64] = points[..., :2] * self.height_px + self.waist_px
        return pixels


def render_people(rng: Generator) -> AnnotatedImage:
    """Render an image, uint8 (256, 256, 3) RGB, with boxes and keypoints of its people."""
    return _render(rng)[0]


def _render(rng: Generator) -> tuple[AnnotatedImage, list[int]]:
    """Render an image; also return the number of visible pixels of each labelled person."""
    canvas = paint_room(rng, WIDTH, HEIGHT)
    instance_map = np.full((HEIGHT, WIDTH), NO_PERSON, np.int32)
    people: list[Person] = []
    target_count = int(rng.choice([1, 2, 3], p=[0.45, 0.45, 0.1]))
    for _ in range(4 * target_count):
        person = _random_person(rng)
        # People may overlap, but not stand directly behind each other.
        if len(people) < target_count and all(_keep_distance(person, other) for other in people):
            people.append(person)
    people.sort(key=lambda person: person.height_px)  # taller people are nearer
    for index, person in enumerate(people):
        _paint(rng, canvas, instance_map, index, person)
    instance_map[paint_foreground(rng, canvas)] = NO_PERSON
    boxes, keypoints, areas = [], [], []
    for index, person in enumerate(people):
        mask = instance_map // _LIMBS_PER_PERSON == index
        if mask.sum() >= _MIN_VISIBLE_PX:
            boxes.append(_box_around(mask))
            keypoints.append(_label_keypoints(person, index, instance_map))
            areas.append(int(mask.sum()))
    image = AnnotatedImage(
        simulate_camera(rng, canvas),
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(boxes), np.int64),
        keypoints=np.asarray(keypoints, np.float32).reshape(-1, len(COCO_KEYPOINTS), 3),
    )
    return image, areas


def _keep_distance(one: Person, other: Person) -> bool:
    return abs(one.waist_px[0] - other.waist_px[0]) > _MIN_DISTANCE_PX


def _random_person(rng: Generator) -> Person:
    # In smaller people faces have a few pixels, too few to tell left from right.
    height_px = float(np.exp(rng.uniform(np.log(130), np.log(250))))
    waist = (float(rng.uniform(0.2, 0.8) * WIDTH), float(rng.uniform(0.42, 0.62) * HEIGHT))
    return Person(random_body(rng), waist, height_px, _clothes(rng))


def _clothes(rng: Generator) -> dict[str, FloatArray]:
    """Draw a colour per kind of limb, RGB 0...255."""

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


def _paint(
    rng: Generator, canvas: FloatArray, instance_map: InstanceMap, index: int, person: Person
) -> None:
    """Paint shaded limbs from the farthest to the nearest."""
    order = sorted(
        range(len(person.body.limbs)),
        key=lambda i: _nearness(person.body.limbs[i]),
    )
    stripe_px = float(rng.uniform(0.025, 0.07)) * person.height_px
    light = float(rng.uniform(-0.35, 0.35))
    for number in order:
        limb = person.body.limbs[number]
        colour = person.colours[limb.kind] * np.float32(rng.uniform(0.85, 1.1))
        rows, columns = _silhouette(person, limb)
        if not len(rows):
            continue
        across = _across(person, limb, rows, columns)
        # Limbs are darker at their edges, which makes an arm visible on a shirt of its colour.
        roundness = 0.0 if limb.kind == "torso" else _ROUNDNESS
        shade = (1 + light * across) * (1 - np.float32(roundness) * across**2)
        paint = shade[:, None] * colour
        if limb.kind in ("torso", "sleeve"):
            striped = (rows // max(2.0, stripe_px)).astype(int) % 2 == 1
            paint[striped] = shade[striped, None] * person.colours["stripes"]
        canvas[rows, columns] = paint
        instance_map[rows, columns] = index * _LIMBS_PER_PERSON + number
        if limb.kind == "head":
            _paint_face(canvas, (rows, columns), person)


def _across(
    person: Person, limb: Limb, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> FloatArray:
    """Return the distance of pixels to the right of the limb's axis, float32 (n,), -1...1."""
    first, second = person.to_pixels(limb.start), person.to_pixels(limb.end)
    axis = second - first
    away = np.stack([columns, rows], axis=1) - first
    along = np.clip(away @ axis / max(float(axis @ axis), 1e-9), 0, 1)
    distance = np.linalg.norm(away - along[:, None] * axis, axis=1)
    radius = (limb.radii[0] + along * (limb.radii[1] - limb.radii[0])) * person.height_px
    side = np.sign(columns - first[0] - along * axis[0])
    return np.asarray(side * np.clip(distance / radius, 0, 1), np.float32)


def _nearness(limb: Limb) -> float:
    # A head hides the neck, which ends in its center; shirts hang over trousers.
    extra = {"head": 0.05, "torso": 0.01}.get(limb.kind, 0.0)
    return float(limb.start[2] + limb.end[2]) / 2 + extra


def _silhouette(person: Person, limb: Limb) -> PixelIndices:
    """Return the pixels of the convex hull of two discs inside the image."""
    first, second = person.to_pixels(limb.start), person.to_pixels(limb.end)
    radii = [radius * person.height_px for radius in limb.radii]
    outline = np.concatenate([first + radii[0] * _CIRCLE, second + radii[1] * _CIRCLE])
    hull = cv2.convexHull(outline.astype(np.float32))
    left, top, width, height = cv2.boundingRect(hull)
    # One more pixel on each side, because edges are rounded.
    corner = np.array([left - 1, top - 1])
    mask = np.zeros((height + 2, width + 2), np.uint8)
    # Four fractional bits, so that outlines are not rounded to whole pixels.
    cv2.fillConvexPoly(mask, ((hull - corner) * 16).round().astype(np.int32), 1, shift=4)
    rows, columns = np.nonzero(mask)
    rows, columns = rows + corner[1], columns + corner[0]
    inside = (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < WIDTH)
    return rows[inside], columns[inside]


def _paint_face(canvas: FloatArray, head_pixels: PixelIndices, person: Person) -> None:
    """Paint hair, and eyes and nose if they are visible."""
    head = next(limb for limb in person.body.limbs if limb.kind == "head")
    center, radius = person.to_pixels(head.start), head.radii[0] * person.height_px
    forward = (person.body.keypoints[0] - head.start) / 0.07
    rows, columns = head_pixels
    away = np.stack([columns, rows], axis=1) - center
    depth = np.sqrt(np.clip(radius**2 - (away**2).sum(axis=1), 0, None))
    towards_face = (away @ forward[:2] + depth * forward[2]) / radius
    is_hair = (towards_face < 0.15) | (away[:, 1] < -0.45 * radius)
    canvas[rows[is_hair], columns[is_hair]] = person.colours["hair"]
    for keypoint, shade, size in ((1, 0.2, 0.14), (2, 0.2, 0.14), (0, 0.75, 0.16)):
        if person.body.keypoints[keypoint][2] > head.start[2]:
            x, y = person.to_pixels(person.body.keypoints[keypoint])
            is_spot = np.hypot(columns - x, rows - y) <= size * radius
            canvas[rows[is_spot], columns[is_spot]] *= np.float32(shade)


def _label_keypoints(person: Person, index: int, instance_map: InstanceMap) -> NDArray[np.float64]:
    """Return float64 (17, 3): x, y, visibility; 0 outside of the image and behind the head."""
    points = person.to_pixels(person.body.keypoints)
    limbs_by_keypoint: dict[int, set[int]] = {keypoint: set() for keypoint in range(len(points))}
    for number, limb in enumerate(person.body.limbs):
        for keypoint in limb.keypoints:
            limbs_by_keypoint[keypoint].add(index * _LIMBS_PER_PERSON + number)
    head_depth = person.body.limbs[1].start[2]
    rows = np.zeros((len(points), 3))
    for keypoint, (x, y) in enumerate(points):
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        # As in COCO, parts on the far side of a head are not labelled.
        behind = keypoint < 5 and person.body.keypoints[keypoint][2] < head_depth - 0.02
        if 0 <= column < WIDTH and 0 <= row < HEIGHT and not behind:
            is_visible = int(instance_map[row, column]) in limbs_by_keypoint[keypoint]
            # Pixel centers are integers here, pixel edges in COCO labels.
            rows[keypoint] = (x + 0.5, y + 0.5, VISIBLE if is_visible else HIDDEN)
    return rows


def _box_around(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return float(columns[0]), float(rows[0]), float(width), float(height)


def coco_document(
    images: Sequence[tuple[AnnotatedImage, Sequence[int]]], file_names: Sequence[str]
) -> dict[str, Any]:
    """Return COCO keypoints of rendered images, each with the visible pixels of its people."""
    person = {
        "id": 1,
        "name": "person",
        "keypoints": list(COCO_KEYPOINTS),
        "skeleton": [[first + 1, second + 1] for first, second in COCO_SKELETON],
    }
    return output.coco_document(
        "Rendered people with exact keypoints",
        [person],
        [image for image, _ in images],
        file_names,
        [areas for _, areas in images],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write rendered images and ``people.json`` to a directory."""
    args = output.parse_args("training.synthetic.people", __doc__, argv, "png")
    args.output.mkdir(parents=True, exist_ok=True)
    images, names = [], []
    for number in range(1, args.count + 1):
        rendered = _render(np.random.default_rng((args.seed, number)))
        name = f"people_{number}.{args.format}"
        output.write_image(args.output / name, rendered[0].pixels)
        images.append(rendered)
        names.append(name)
    output.write_json(args.output / "people.json", coco_document(images, names))


if __name__ == "__main__":
    main()
