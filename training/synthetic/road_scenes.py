"""Synthetic road scenes with exact 3D boxes of the vehicles.

``python -m training.synthetic.road_scenes --output DIR --count N --seed S`` writes images, labels
and calibrations in KITTI's format. Images are generated from random numbers only, without
photographs or models of real vehicles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from training.data.sample import ALL_CLASSES, AnnotatedImage, Boxes3D, Pixels
from training.synthetic.output import parse_args, write_image
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
"""Range of vehicle centers along the optical axis."""

_MIN_VISIBLE = 0.5
"""Vehicles with a smaller visible share become ignored regions."""
_CLEARLY_VISIBLE = 0.9
_GAP_M = 0.4
_VEHICLE_COUNT_PROBABILITIES = (0.1, 0.12, 0.18, 0.2, 0.2, 0.2)
"""Probabilities of one to six vehicles per image, before hidden ones are removed."""


@dataclass(frozen=True)
class RenderedVehicle:
    """A vehicle in the image.

    Attributes:
        vehicle: the vehicle.
        amodal_xyxy: box around all of it, including parts that are hidden or outside of the image.
        visible: visible share of the part inside the image.
    """

    vehicle: Vehicle
    amodal_xyxy: Box
    visible: float

    @property
    def box_xyxy(self) -> Box:
        """The box, clipped to the image."""
        return np.clip(self.amodal_xyxy, 0, (WIDTH, HEIGHT) * 2)

    @property
    def truncation(self) -> float:
        """Share of the box outside of the image, 0...1."""
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (self.box_xyxy, self.amodal_xyxy)]
        return float(1 - areas[0] / areas[1])

    @property
    def is_object(self) -> bool:
        """Whether enough of the vehicle is visible to label it."""
        return self.visible >= _MIN_VISIBLE and self.truncation <= 1 - _MIN_VISIBLE


def render_road(rng: Generator) -> AnnotatedImage:
    """Render an image, uint8 (207, 621, 3) RGB, with 2D and 3D boxes of its vehicles."""
    pixels, rendered = _render(rng)
    objects = [item for item in rendered if item.is_object]
    ignored = [item for item in rendered if not item.is_object]
    vehicles = [item.vehicle for item in objects]
    return AnnotatedImage(
        pixels,
        _boxes_xywh(objects),
        np.array([CLASS_NAMES.index(vehicle.class_name) for vehicle in vehicles], np.int64),
        boxes_3d=Boxes3D(
            depths_m=np.array([v.location_m[2] for v in vehicles], np.float32),
            dimensions_m=np.array([v.dimensions_m for v in vehicles], np.float32).reshape(-1, 3),
            alphas_rad=np.array([v.alpha for v in vehicles], np.float32),
        ),
        ignored_xywh=_boxes_xywh(ignored),
        ignored_class_ids=np.full(len(ignored), ALL_CLASSES, np.int64),
    )


def _boxes_xywh(rendered: Sequence[RenderedVehicle]) -> np.ndarray:
    boxes = np.array([item.box_xyxy for item in rendered], np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _render(rng: Generator) -> tuple[Pixels, list[RenderedVehicle]]:
    """Render an image; also return all vehicles of which a part is visible."""
    road = random_road(rng)
    vehicles = _arrange(rng, road)
    canvas = paint_background(rng, road)
    sun = random_sun_direction(rng)
    paint_shadows(rng, canvas, vehicles, sun)
    roadside_objects = _roadside_objects(rng, road, vehicles)
    instance_map = np.full((HEIGHT, WIDTH), 0, np.uint8)
    items: list[Vehicle | RoadsideObject] = [*vehicles, *roadside_objects]
    items.sort(key=lambda item: -np.hypot(item.location_m[0], item.location_m[2]))
    boxes: dict[int, tuple[Box, int]] = {}
    ambient = float(rng.uniform(0.45, 0.8))
    for number, item in enumerate(items, start=1):
        if isinstance(item, RoadsideObject):
            for polygon, colour in item.paint():
                fill(canvas, polygon, colour)
                fill(instance_map, polygon, (0,), cv2.LINE_8)
        else:
            boxes[number] = paint_vehicle(canvas, instance_map, number, item, sun, ambient)
    rendered = []
    counts = np.bincount(instance_map.ravel(), minlength=len(items) + 1)
    for number, (box, painted) in boxes.items():
        if painted and counts[number]:
            vehicle = items[number - 1]
            assert isinstance(vehicle, Vehicle)
            rendered.append(RenderedVehicle(vehicle, box, counts[number] / painted))
    return simulate_camera(rng, canvas), rendered


def _arrange(rng: Generator, road: Road) -> list[Vehicle]:
    """Place one to six vehicles on the ground without overlap."""
    placed: list[Vehicle] = []
    target_count = int(rng.choice(6, p=_VEHICLE_COUNT_PROBABILITIES)) + 1
    for _ in range(20 * target_count):
        if len(placed) == target_count:
            break
        depth = NEAREST_M + (FARTHEST_M - NEAREST_M) * rng.beta(1.1, 1.6)
        across, rotation = _random_pose(rng, road)
        (x, y, z) = road.to_camera_frame(np.array([across]), np.array([depth]))[0]
        vehicle = random_vehicle(rng, (float(x), float(y), float(z)), rotation + road.yaw)
        if not NEAREST_M <= z <= FARTHEST_M or not _is_in_view(x, y, z):
            continue
        if all(_keeps_distance(vehicle, other) for other in placed):
            placed.append(vehicle)
    return placed


def _is_in_view(x: float, y: float, z: float) -> bool:
    """Return whether the point is at least 1/16 of the image from its left and right edge."""
    column = project(np.array([x, y, z]))[0]
    return bool(WIDTH / 16 < column < WIDTH * 15 / 16)


def _random_pose(rng: Generator, road: Road) -> tuple[float, float]:
    """Draw the position of a vehicle across the road and its rotation relative to the road."""
    ahead, oncoming = -np.pi / 2, np.pi / 2
    half = road.half_width_m
    if road.is_yard:
        return float(rng.uniform(-half, half)), float(rng.uniform(-np.pi, np.pi))
    kind = rng.random()
    if kind < 0.35:  # parked at the kerb
        side = rng.choice([-1.0, 1.0])
        turn = rng.choice([ahead, oncoming]) + rng.normal(0, 0.04)
        return float(side * (half - rng.uniform(0.95, 1.2))), float(turn)
    if kind < 0.55:
        return float(rng.uniform(0.15, 0.6) * half), float(ahead + rng.normal(0, 0.06))
    if kind < 0.75:
        return float(-rng.uniform(0.15, 0.6) * half), float(oncoming + rng.normal(0, 0.06))
    if kind < 0.9:  # crossing, or from a side road
        turn = rng.choice([0.0, np.pi]) + rng.normal(0, 0.15)
        return float(rng.uniform(-1.6, 1.6) * half), float(turn)
    return float(rng.uniform(-0.8, 0.8) * half), float(rng.uniform(-np.pi, np.pi))


def _keeps_distance(vehicle: Vehicle, other: Vehicle) -> bool:
    middle, (width, length), degrees = vehicle.footprint
    wider = (middle, (width + 2 * _GAP_M, length + 2 * _GAP_M), degrees)
    return _is_disjoint(wider, other)


def _is_disjoint(rectangle: Footprint, vehicle: Vehicle) -> bool:
    kind, _ = cv2.rotatedRectangleIntersection(rectangle, vehicle.footprint)
    return bool(kind == cv2.INTERSECT_NONE)


def _roadside_objects(
    rng: Generator, road: Road, vehicles: Sequence[Vehicle]
) -> list[RoadsideObject]:
    """Place trees, poles, signs and bushes beyond the kerb; some of them hide vehicles."""
    placed = []
    for _ in range(int(rng.integers(0, 9))):
        side = rng.choice([-1.0, 1.0])
        across = side * (road.half_width_m + rng.uniform(0.6, 6))
        point = road.to_camera_frame(np.array([across]), np.array([rng.uniform(6, 50)]))[0]
        surroundings = (float(point[0]), float(point[2])), (1.2, 1.2), 0.0
        if point[2] > 4 and all(_is_disjoint(surroundings, vehicle) for vehicle in vehicles):
            x, y, z = point.tolist()
            placed.append(RoadsideObject((x, y, z), int(rng.integers(2**31))))
    return placed


def kitti_label(rendered: RenderedVehicle) -> str:
    """Return the line of a KITTI label file; ``DontCare`` if too little is visible."""
    box = " ".join(f"{value:.2f}" for value in rendered.box_xyxy)
    if not rendered.is_object:
        return f"DontCare -1 -1 -10 {box} -1 -1 -1 -1000 -1000 -1000 -10"
    vehicle = rendered.vehicle
    occlusion = int(rendered.visible < _CLEARLY_VISIBLE)
    box_3d = " ".join(
        f"{value:.4f}" for value in (*vehicle.dimensions_m, *vehicle.location_m, vehicle.rotation_y)
    )
    first = f"{vehicle.class_name} {rendered.truncation:.2f} {occlusion} {vehicle.alpha:.4f}"
    return f"{first} {box} {box_3d}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``image_2``, ``label_2`` and ``calib`` to a directory."""
    args = parse_args("training.synthetic.road_scenes", __doc__, argv, "png")
    folders = {name: args.output / name for name in ("image_2", "label_2", "calib")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, args.count + 1):
        pixels, rendered = _render(np.random.default_rng((args.seed, number)))
        name = f"road_{number:04d}"
        write_image(folders["image_2"] / f"{name}.{args.format}", pixels)
        lines = "".join(f"{kitti_label(item)}\n" for item in rendered)
        (folders["label_2"] / f"{name}.txt").write_text(lines, encoding="utf-8")
        matrix = " ".join(f"{value:.6e}" for value in PROJECTION)
        (folders["calib"] / f"{name}.txt").write_text(f"P2: {matrix}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
