"""Rendered roads: as many images of vehicles with exact 3D boxes as target_count.

``python -m training.synthetic.road_scenes --output DIR --count N --seed S`` writes images, labels and
calibrations as KITTI has them. Everything is drawn from the random generator alone; no simulate_camera
and no model of a real vehicle enters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from training.data.sample import ALL_CLASSES, AnnotatedImage, Boxes3D, Pixels
from training.synthetic.output import read_options, write_image
from training.synthetic.road_background import (
    HEIGHT,
    PROJECTION,
    WIDTH,
    Road,
    RoadsideObject,
    fill,
    paint_background,
    project,
    random_road,
    simulate_camera,
)
from training.synthetic.vehicle_painting import (
    Box,
    paint_shadows,
    paint_vehicle,
    random_sun_direction,
)
from training.synthetic.vehicles import Footprint, Vehicle, random_vehicle

CLASS_NAMES = ("Car", "Van")

NEAREST_M, FARTHEST_M = 8.5, 26.0
"""Where the middles of vehicles are, along the optical axis."""

_MIN_VISIBLE = 0.5
"""A vehicle of which less can be seen is neither an object nor background."""
_CLEARLY_VISIBLE = 0.9
_GAP_M = 0.4
_VEHICLE_COUNT_PROBABILITIES = (0.1, 0.12, 0.18, 0.2, 0.2, 0.2)
"""How many images have one vehicle, two, ... six before what is hidden is left out."""


@dataclass(frozen=True)
class RenderedVehicle:
    """A vehicle in the image.

    Attributes:
        vehicle: where it stands.
        amodal_xyxy: box around all of it, also outside of the image and behind other roadside_objects.
        visible: the share of it that shows, of what the image has room for.
    """

    vehicle: Vehicle
    amodal_xyxy: Box
    visible: float

    @property
    def box_xyxy(self) -> Box:
        """The part of the box that is inside of the image."""
        return np.clip(self.amodal_xyxy, 0, (WIDTH, HEIGHT) * 2)

    @property
    def truncation(self) -> float:
        """The share of the box that is outside, 0...1."""
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (self.box_xyxy, self.amodal_xyxy)]
        return float(1 - areas[0] / areas[1])

    @property
    def is_object(self) -> bool:
        """Whether enough of it shows."""
        return self.visible >= _MIN_VISIBLE and self.truncation <= 1 - _MIN_VISIBLE


def render_road(rng: Generator) -> AnnotatedImage:
    """Render one image, uint8 (207, 621, 3) RGB, with the vehicles in it."""
    pixels, seen = _render(rng)
    objects = [one for one in seen if one.is_object]
    others = [one for one in seen if not one.is_object]
    vehicles = [one.vehicle for one in objects]
    return AnnotatedImage(
        pixels,
        _boxes_xywh(objects),
        np.array([CLASS_NAMES.index(one.class_name) for one in vehicles], np.int64),
        boxes_3d=Boxes3D(
            depths_m=np.array([one.location_m[2] for one in vehicles], np.float32),
            dimensions_m=np.array([one.dimensions_m for one in vehicles], np.float32).reshape(
                -1, 3
            ),
            alphas_rad=np.array([one.alpha for one in vehicles], np.float32),
        ),
        ignored_xywh=_boxes_xywh(others),
        ignored_class_ids=np.full(len(others), ALL_CLASSES, np.int64),
    )


def _boxes_xywh(seen: Sequence[RenderedVehicle]) -> np.ndarray:
    boxes = np.array([one.box_xyxy for one in seen], np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _render(rng: Generator) -> tuple[Pixels, list[RenderedVehicle]]:
    """The image, and all vehicles of which something shows."""
    road = random_road(rng)
    vehicles = _arrange(rng, road)
    canvas = paint_background(rng, road)
    sun = random_sun_direction(rng)
    paint_shadows(rng, canvas, vehicles, sun)
    roadside_objects = _roadside_objects(rng, road, vehicles)
    instance_map = np.full((HEIGHT, WIDTH), 0, np.uint8)
    standing: list[Vehicle | RoadsideObject] = [*vehicles, *roadside_objects]
    standing.sort(key=lambda one: -np.hypot(one.location_m[0], one.location_m[2]))
    boxes: dict[int, tuple[Box, int]] = {}
    ambient = float(rng.uniform(0.45, 0.8))
    for number, one in enumerate(standing, start=1):
        if isinstance(one, RoadsideObject):
            for polygon, colour in one.paint():
                fill(canvas, polygon, colour)
                fill(instance_map, polygon, (0,), cv2.LINE_8)
        else:
            boxes[number] = paint_vehicle(canvas, instance_map, number, one, sun, ambient)
    seen = []
    counts = np.bincount(instance_map.ravel(), minlength=len(standing) + 1)
    for number, (box, whole) in boxes.items():
        if whole and counts[number]:
            vehicle = standing[number - 1]
            assert isinstance(vehicle, Vehicle)
            seen.append(RenderedVehicle(vehicle, box, counts[number] / whole))
    return simulate_camera(rng, canvas), seen


def _arrange(rng: Generator, road: Road) -> list[Vehicle]:
    """One to six vehicles that stand on the ground and not in each other."""
    placed: list[Vehicle] = []
    target_count = int(rng.choice(6, p=_VEHICLE_COUNT_PROBABILITIES)) + 1
    for _ in range(20 * target_count):
        if len(placed) == target_count:
            break
        depth = NEAREST_M + (FARTHEST_M - NEAREST_M) * rng.beta(1.1, 1.6)
        across, turn = _random_pose(rng, road)
        (x, y, z) = road.to_camera_frame(np.array([across]), np.array([depth]))[0]
        vehicle = random_vehicle(rng, (float(x), float(y), float(z)), turn + road.yaw)
        if not NEAREST_M <= z <= FARTHEST_M or not _is_in_view(x, y, z):
            continue
        if all(_is_apart(vehicle, other) for other in placed):
            placed.append(vehicle)
    return placed


def _is_in_view(x: float, y: float, z: float) -> bool:
    """Whether the place is at least a sixteenth of the image away from its left and right."""
    column = project(np.array([x, y, z]))[0]
    return bool(WIDTH / 16 < column < WIDTH * 15 / 16)


def _random_pose(rng: Generator, road: Road) -> tuple[float, float]:
    """Where across the road a vehicle is, and how it is turned against the road."""
    ahead, oncoming = -np.pi / 2, np.pi / 2
    half = road.half_width_m
    if road.is_yard:
        return float(rng.uniform(-half, half)), float(rng.uniform(-np.pi, np.pi))
    kind = rng.random()
    if kind < 0.35:  # at the kerb
        side = rng.choice([-1.0, 1.0])
        turn = rng.choice([ahead, oncoming]) + rng.normal(0, 0.04)
        return float(side * (half - rng.uniform(0.95, 1.2))), float(turn)
    if kind < 0.55:
        return float(rng.uniform(0.15, 0.6) * half), float(ahead + rng.normal(0, 0.06))
    if kind < 0.75:
        return float(-rng.uniform(0.15, 0.6) * half), float(oncoming + rng.normal(0, 0.06))
    if kind < 0.9:  # across, or out of a side road
        turn = rng.choice([0.0, np.pi]) + rng.normal(0, 0.15)
        return float(rng.uniform(-1.6, 1.6) * half), float(turn)
    return float(rng.uniform(-0.8, 0.8) * half), float(rng.uniform(-np.pi, np.pi))


def _is_apart(one: Vehicle, other: Vehicle) -> bool:
    middle, (width, length), degrees = one.footprint
    wider = (middle, (width + 2 * _GAP_M, length + 2 * _GAP_M), degrees)
    return _is_beside(wider, other)


def _is_beside(rectangle: Footprint, vehicle: Vehicle) -> bool:
    kind, _ = cv2.rotatedRectangleIntersection(rectangle, vehicle.footprint)
    return bool(kind == cv2.INTERSECT_NONE)


def _roadside_objects(
    rng: Generator, road: Road, vehicles: Sequence[Vehicle]
) -> list[RoadsideObject]:
    """Trees, poles and bushes beyond the kerb, and a few that hide something."""
    roadside_objects = []
    for _ in range(int(rng.integers(0, 9))):
        side = rng.choice([-1.0, 1.0])
        across = side * (road.half_width_m + rng.uniform(0.6, 6))
        place = road.to_camera_frame(np.array([across]), np.array([rng.uniform(6, 50)]))[0]
        around = (float(place[0]), float(place[2])), (1.2, 1.2), 0.0
        if place[2] > 4 and all(_is_beside(around, vehicle) for vehicle in vehicles):
            x, y, z = place.tolist()
            roadside_objects.append(RoadsideObject((x, y, z), int(rng.integers(2**31))))
    return roadside_objects


def kitti_label(seen: RenderedVehicle) -> str:
    """Its line in a label file; ``DontCare`` where too little shows."""
    box = " ".join(f"{value:.2f}" for value in seen.box_xyxy)
    if not seen.is_object:
        return f"DontCare -1 -1 -10 {box} -1 -1 -1 -1000 -1000 -1000 -10"
    vehicle = seen.vehicle
    occlusion = int(seen.visible < _CLEARLY_VISIBLE)
    where = " ".join(
        f"{value:.4f}" for value in (*vehicle.dimensions_m, *vehicle.location_m, vehicle.rotation_y)
    )
    first = f"{vehicle.class_name} {seen.truncation:.2f} {occlusion} {vehicle.alpha:.4f}"
    return f"{first} {box} {where}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: write ``image_2``, ``label_2`` and ``calib`` into a directory."""
    options = read_options("training.synthetic.road_scenes", __doc__, arguments, "png")
    folders = {name: options.output / name for name in ("image_2", "label_2", "calib")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, options.count + 1):
        pixels, seen = _render(np.random.default_rng((options.seed, number)))
        name = f"road_{number:04d}"
        write_image(folders["image_2"] / f"{name}.{options.format}", pixels)
        lines = "".join(f"{kitti_label(one)}\n" for one in seen)
        (folders["label_2"] / f"{name}.txt").write_text(lines, encoding="utf-8")
        matrix = " ".join(f"{value:.6e}" for value in PROJECTION)
        (folders["calib"] / f"{name}.txt").write_text(f"P2: {matrix}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
