"""Rendered people: as many images of articulated figures with 17 keypoints as target_count.

``python -m training.synthetic.people --output DIR --count N --seed S`` writes images and a COCO file.
Everything is drawn from the random generator alone; no simulate_camera and no person enters.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model_export.class_names import COCO_KEYPOINTS, COCO_SKELETON
from training.data.sample import AnnotatedImage, FloatArray
from training.synthetic.output import read_options, write_image
from training.synthetic.scenery import paint_foreground, paint_room, simulate_camera
from training.synthetic.shapes import unit_circle
from training.synthetic.skeletons import Body, Limb, random_body

WIDTH, HEIGHT = 256, 256
NO_PERSON = -1
HIDDEN, VISIBLE = 1, 2
"""COCO's visibilities of keypoints that are labelled."""

_MIN_DISTANCE_PX = 50
"""Waists of two people are at least so far to the side of each other."""

_MIN_VISIBLE_PX = 60
"""A person of whom fewer pixels show is not labelled."""

InstanceMap = NDArray[np.int32]
"""int32 (H, W): ``person * 100 + limb`` that is seen in each pixel, or NO_PERSON."""

_LIMBS_PER_PERSON = 100

PixelIndices = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and columns of pixels."""

_CIRCLE = unit_circle(24)

_ROUNDNESS = 0.45
"""Which part of its light a limb has lost at its edge."""


@dataclass(frozen=True)
class Person:
    """A body in the image: ``height_px`` tall, its waist at ``waist_px``, x and y."""

    body: Body
    waist_px: tuple[float, float]
    height_px: float
    colours: Mapping[str, FloatArray]

    def to_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the body, (..., 3), in pixels, (..., 2)."""
        placed: NDArray[np.float64] = points[..., :2] * self.height_px + self.waist_px
        return placed


def render_people(rng: Generator) -> AnnotatedImage:
    """Render one image, uint8 (256, 256, 3) RGB, with boxes and keypoints of the people in it."""
    return _render(rng)[0]


def _render(rng: Generator) -> tuple[AnnotatedImage, list[int]]:
    """The image, and how many pixels of each labelled person show."""
    canvas = paint_room(rng, WIDTH, HEIGHT)
    instance_map = np.full((HEIGHT, WIDTH), NO_PERSON, np.int32)
    people: list[Person] = []
    target_count = int(rng.choice([1, 2, 3], p=[0.45, 0.45, 0.1]))
    for _ in range(4 * target_count):
        person = _random_person(rng)
        # Limbs may hide another person's, but nobody stands right behind somebody.
        if len(people) < target_count and all(_are_apart(person, other) for other in people):
            people.append(person)
    people.sort(key=lambda person: person.height_px)  # who is nearer is taller
    for index, person in enumerate(people):
        _paint(rng, canvas, instance_map, index, person)
    instance_map[paint_foreground(rng, canvas)] = NO_PERSON
    boxes, keypoints, areas = [], [], []
    for index, person in enumerate(people):
        belongs = instance_map // _LIMBS_PER_PERSON == index
        if belongs.sum() >= _MIN_VISIBLE_PX:
            boxes.append(_box_around(belongs))
            keypoints.append(_label_keypoints(person, index, instance_map))
            areas.append(int(belongs.sum()))
    image = AnnotatedImage(
        simulate_camera(rng, canvas),
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(boxes), np.int64),
        keypoints=np.asarray(keypoints, np.float32).reshape(-1, len(COCO_KEYPOINTS), 3),
    )
    return image, areas


def _are_apart(one: Person, other: Person) -> bool:
    return abs(one.waist_px[0] - other.waist_px[0]) > _MIN_DISTANCE_PX


def _random_person(rng: Generator) -> Person:
    # Smaller ones have faces of a few pixels, in which no eye can be told from the other.
    height_px = float(np.exp(rng.uniform(np.log(130), np.log(250))))
    waist = (float(rng.uniform(0.2, 0.8) * WIDTH), float(rng.uniform(0.42, 0.62) * HEIGHT))
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


def _paint(
    rng: Generator, canvas: FloatArray, instance_map: InstanceMap, index: int, person: Person
) -> None:
    """Paint limbs from the farthest to the nearest, each with a soft shade of its own."""
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
        # Limbs are round: what turns away from the viewer is darker, which shows an arm before a
        # shirt of the same colour.
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
    """How far pixels are to the right of the limb's axis; float32 (n,), -1...1 at its edges."""
    first, second = person.to_pixels(limb.start), person.to_pixels(limb.end)
    axis = second - first
    away = np.stack([columns, rows], axis=1) - first
    along = np.clip(away @ axis / max(float(axis @ axis), 1e-9), 0, 1)
    distance = np.linalg.norm(away - along[:, None] * axis, axis=1)
    radius = (limb.radii[0] + along * (limb.radii[1] - limb.radii[0])) * person.height_px
    side = np.sign(columns - first[0] - along * axis[0])
    return np.asarray(side * np.clip(distance / radius, 0, 1), np.float32)


def _nearness(limb: Limb) -> float:
    # A head hides the neck that ends in its middle; shirts hang over trousers.
    extra = {"head": 0.05, "torso": 0.01}.get(limb.kind, 0.0)
    return float(limb.start[2] + limb.end[2]) / 2 + extra


def _silhouette(person: Person, limb: Limb) -> PixelIndices:
    """Where the convex hull of two discs is, as far as it is in the image."""
    first, second = person.to_pixels(limb.start), person.to_pixels(limb.end)
    radii = [radius * person.height_px for radius in limb.radii]
    outline = np.concatenate([first + radii[0] * _CIRCLE, second + radii[1] * _CIRCLE])
    hull = cv2.convexHull(outline.astype(np.float32))
    left, top, width, height = cv2.boundingRect(hull)
    # One pixel more on each side, because edges are rounded.
    corner = np.array([left - 1, top - 1])
    mask = np.zeros((height + 2, width + 2), np.uint8)
    # Four more bits: outlines that are not rounded to whole pixels.
    cv2.fillConvexPoly(mask, ((hull - corner) * 16).round().astype(np.int32), 1, shift=4)
    rows, columns = np.nonzero(mask)
    rows, columns = rows + corner[1], columns + corner[0]
    inside = (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < WIDTH)
    return rows[inside], columns[inside]


def _paint_face(canvas: FloatArray, head_pixels: PixelIndices, person: Person) -> None:
    """Hair where no face is, eyes and nose where they are seen."""
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
    """Float64 (17, 3): x, y and visibility; 0 outside of the image and behind the head."""
    places = person.to_pixels(person.body.keypoints)
    shown_by: dict[int, set[int]] = {keypoint: set() for keypoint in range(len(places))}
    for number, limb in enumerate(person.body.limbs):
        for keypoint in limb.keypoints:
            shown_by[keypoint].add(index * _LIMBS_PER_PERSON + number)
    head_depth = person.body.limbs[1].start[2]
    rows = np.zeros((len(places), 3))
    for keypoint, (x, y) in enumerate(places):
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        # As in COCO, nobody labels what is on the far side of a head.
        behind = keypoint < 5 and person.body.keypoints[keypoint][2] < head_depth - 0.02
        if 0 <= column < WIDTH and 0 <= row < HEIGHT and not behind:
            seen = int(instance_map[row, column]) in shown_by[keypoint]
            # Half a pixel: centers of pixels have whole numbers here, their edges in labels.
            rows[keypoint] = (x + 0.5, y + 0.5, VISIBLE if seen else HIDDEN)
    return rows


def _box_around(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return float(columns[0]), float(rows[0]), float(width), float(height)


def coco_document(
    images: Sequence[tuple[AnnotatedImage, Sequence[int]]], file_names: Sequence[str]
) -> dict[str, Any]:
    """COCO keypoints of rendered images, each with the visible pixels of its people."""
    image_entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, ((image, areas), name) in enumerate(
        zip(images, file_names, strict=True), start=1
    ):
        assert image.keypoints is not None
        image_entries.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for box, keypoints, area in zip(image.boxes_xywh, image.keypoints, areas, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": box.tolist(),
                    "area": area,
                    "iscrowd": 0,
                    "keypoints": keypoints.round(2).ravel().tolist(),
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                }
            )
    person = {
        "id": 1,
        "name": "person",
        "keypoints": list(COCO_KEYPOINTS),
        "skeleton": [[first + 1, second + 1] for first, second in COCO_SKELETON],
    }
    return {
        "info": {"description": "Rendered people with exact keypoints"},
        "images": image_entries,
        "annotations": annotations,
        "categories": [person],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: write rendered images and ``people.json`` into a directory."""
    options = read_options("training.synthetic.people", __doc__, arguments, "png")
    options.output.mkdir(parents=True, exist_ok=True)
    images, names = [], []
    for number in range(1, options.count + 1):
        rendered = _render(np.random.default_rng((options.seed, number)))
        name = f"people_{number}.{options.format}"
        write_image(options.output / name, rendered[0].pixels)
        images.append(rendered)
        names.append(name)
    document = json.dumps(coco_document(images, names), indent=1)
    (options.output / "people.json").write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
