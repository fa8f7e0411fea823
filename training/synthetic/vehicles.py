"""Vehicles as solids with painted faces, for synthetic road scenes.

Coordinates in metres: camera coordinates are KITTI's, x to the right, y down, z ahead; vehicle
coordinates are x forward, y down from the ground (the roof is at ``-height``), z to the left.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.random import Generator

from training.data.sample import FloatArray
from training.synthetic.vehicle_details import (
    WHEEL_M,
    Detail,
    Points,
    disc,
    front_details,
    lamp_pair,
    part,
    rear_details,
    side_details,
)

VehicleClass = Literal["Car", "Van"]

Footprint = tuple[tuple[float, float], tuple[float, float], float]
"""Center, size and angle in degrees of a rectangle on the ground (OpenCV's RotatedRect)."""

_CLEARANCE_M, _TYRE_WIDTH_M = 0.2, 0.22
# Class, probability, ranges of height, width and length, height of the belt line (share of the
# height), and rear and front ends of cabin floor and roof (shares of the length from the rear).
_SHAPES: Sequence[
    tuple[VehicleClass, float, tuple[tuple[float, float], ...], float, tuple[float, ...]]
] = (
    ("Car", 0.22, ((1.42, 1.55), (1.62, 1.75), (3.6, 4.2)), 0.60, (0.01, 0.06, 0.52, 0.72)),
    ("Car", 0.22, ((1.38, 1.50), (1.72, 1.86), (4.3, 4.9)), 0.61, (0.12, 0.27, 0.52, 0.70)),
    ("Car", 0.16, ((1.58, 1.75), (1.76, 1.92), (4.2, 4.8)), 0.58, (0.01, 0.05, 0.56, 0.72)),
    ("Van", 0.40, ((1.95, 2.35), (1.85, 2.02), (4.8, 5.6)), 0.55, (0.00, 0.01, 0.76, 0.90)),
)


@dataclass(frozen=True)
class Vehicle:
    """A vehicle and its pose.

    Attributes:
        class_name: KITTI's class.
        dimensions_m: height, width, length.
        location_m: center of the bottom face in camera coordinates.
        rotation_y: as in KITTI, -pi...pi; 0 drives to the right, pi/2 towards the camera.
        profile: belt line and cabin as in ``_SHAPES``.
        paint: RGB, 0...255.
        seed: seed of the random details.
    """

    class_name: VehicleClass
    dimensions_m: tuple[float, float, float]
    location_m: tuple[float, float, float]
    rotation_y: float
    profile: tuple[float, ...]
    paint: FloatArray
    seed: int

    @property
    def alpha(self) -> float:
        """Observation angle (KITTI), -pi...pi."""
        x, _, z = self.location_m
        return float(np.remainder(self.rotation_y - np.arctan2(x, z) + np.pi, 2 * np.pi) - np.pi)

    @property
    def footprint(self) -> Footprint:
        """Rectangle on the ground."""
        x, _, z = self.location_m
        return (x, z), self.dimensions_m[:0:-1], float(-np.degrees(self.rotation_y))

    def to_camera_frame(self, points: Points) -> Points:
        """Convert points, (..., 3), from vehicle to camera coordinates."""
        converted: Points = self.rotate(points) + self.location_m
        return converted

    def rotate(self, directions: Points) -> Points:
        """Rotate directions, (..., 3), from vehicle to camera coordinates."""
        cosine, sine = math.cos(self.rotation_y), math.sin(self.rotation_y)
        rotated: Points = directions @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
        return rotated


@dataclass(frozen=True)
class Face:
    """A convex face that is visible to the camera.

    Attributes:
        outline: (n, 3) in vehicle coordinates.
        outward: normal, unit vector (3,) in camera coordinates.
        details: polygons (n, 3) on it and their colours, in painting order.
        lamps: the same for polygons that emit light.
    """

    outline: Points
    outward: Points
    details: Sequence[Detail]
    lamps: Sequence[Detail] = ()


def random_vehicle(
    rng: Generator, location_m: tuple[float, float, float], rotation_y: float
) -> Vehicle:
    """Draw a vehicle of random class, size and paint."""
    index = int(rng.choice(len(_SHAPES), p=[shape[1] for shape in _SHAPES]))
    name, _, ranges, belt, cabin = _SHAPES[index]
    height, width, length = (float(rng.uniform(*span)) for span in ranges)
    # Most vehicles are grey, black or white.
    paint = np.full(3, rng.choice([18, 60, 120, 185, 238])) + rng.normal(0, 8, 3)
    if rng.random() < 0.5:
        paint = rng.uniform(10, 230, 3)
        if paint[0] > 1.4 * paint[1:].max():  # red is for rear lamps only
            paint = paint[::-1]
    shift = rng.normal(0, 0.012, 4)
    return Vehicle(
        class_name=name,
        dimensions_m=(height, width, length),
        location_m=location_m,
        rotation_y=float(np.remainder(rotation_y + np.pi, 2 * np.pi) - np.pi),
        profile=(belt + float(rng.normal(0, 0.012)), *(np.array(cabin) + shift).clip(0, 1)),
        paint=np.clip(paint, 4, 245).astype(np.float32),
        seed=int(rng.integers(2**31)),
    )


def wheels(vehicle: Vehicle) -> list[Points]:
    """Return points, (32, 3), of four tyres, whose outlines are their convex hulls."""
    _, width, length = vehicle.dimensions_m
    tyres = []
    for x in (-0.31 * length, 0.32 * length):
        for side in (-1.0, 1.0):
            outer = disc(x, side * (width / 2 - 0.02), WHEEL_M)
            inner = outer - np.array([0, 0, side * _TYRE_WIDTH_M])
            tyres.append(np.concatenate([outer, inner]))
    return tyres


def faces(vehicle: Vehicle) -> Iterator[Face]:
    """Yield the visible faces in painting order.

    The belt line is lower than the camera, so the body never hides the cabin.
    """
    rng = np.random.default_rng(vehicle.seed)
    height, width, length = vehicle.dimensions_m
    belt, rear, roof_rear, roof_front, front = vehicle.profile
    back, low, middle = -length / 2, -_CLEARANCE_M, -belt * height
    nose = middle * float(rng.uniform(0.72, 0.84) if vehicle.class_name == "Car" else 0.92)
    scuttle = back + front * length
    tail = back + rear * length
    profile = np.array(
        [
            *((back, low), (-back, low), (-back, nose), (min(scuttle, -back - 0.05), middle)),
            *((max(tail, back + 0.05), middle), (back, 0.93 * middle)),
        ]
    )
    yield from _body(rng, vehicle, profile, width)
    base = _cabin_corners(
        np.array([(tail, middle), (scuttle, middle)]),
        np.array([(back + roof_rear * length, -height), (back + roof_front * length, -height)]),
        0.47 * width,
        float(rng.uniform(0.38, 0.42) if vehicle.class_name == "Car" else 0.46) * width,
    )
    yield from _cabin(rng, vehicle, base)


def _body(rng: Generator, vehicle: Vehicle, profile: Points, width: float) -> Iterator[Face]:
    middle = np.array([0.0, profile[:, 1].mean(), 0.0])
    count = len(profile)
    for index in range(1, count):  # without the underside
        first, second = profile[index], profile[(index + 1) % count]
        outline = np.array(
            [
                *((*first, -width / 2), (*first, width / 2)),
                *((*second, width / 2), (*second, -width / 2)),
            ]
        )
        if index == count - 1:  # lower edge first, as for the front
            outline = outline[[2, 3, 0, 1]]
        if index in (1, count - 1):
            paint = front_details if index == 1 else rear_details
            lamps = partial(lamp_pair, rng, outline, is_front=index == 1)
            yield from _visible_face(vehicle, outline, middle, partial(paint, rng, outline), lamps)
        else:
            yield from _visible_face(vehicle, outline, middle)
    stripes = 0.6 if vehicle.class_name == "Van" else 0.2
    for z in (-width / 2, width / 2):
        outline = np.column_stack([profile, np.full(count, z)])
        details = partial(side_details, rng, profile, z, vehicle.paint, stripes)
        yield from _visible_face(vehicle, outline, middle, details)


def _visible_face(
    vehicle: Vehicle,
    outline: Points,
    middle: Points,
    details: Callable[[], Iterable[Detail]] = tuple,
    lamps: Callable[[], Iterable[Detail]] = tuple,
) -> Iterator[Face]:
    """Yield the face unless it is turned away; ``middle`` is a point inside the solid."""
    (a, b, c), (d, e, f) = outline[1] - outline[0], outline[2] - outline[0]
    normal = np.array([b * f - c * e, c * d - a * f, a * e - b * d])
    normal *= np.sign(normal @ (outline[0] - middle)) / np.sqrt(normal @ normal)
    outward = vehicle.rotate(normal)
    if outward @ vehicle.to_camera_frame(outline[0]) < 0:
        yield Face(outline, outward, list(details()), list(lamps()))


def _cabin(rng: Generator, vehicle: Vehicle, corners: Points) -> Iterator[Face]:
    """Yield windows, pillars and the roof; ``corners`` as in :func:`_cabin_corners`."""
    glass = rng.uniform([18, 24, 30], [70, 82, 95]).astype(np.float32)
    is_van = vehicle.class_name == "Van"
    middle = corners.mean(axis=0)
    panes: dict[str, list[tuple[float, float]]] = {
        "rear": [(0.08, 0.46), (0.54, 0.92)] if is_van else [(0.08, 0.92)],
        "front": [(0.06, 0.94)],
        "left": [(0.05, 0.34), (0.38, 0.66), (0.70, 0.95)],
        "right": [(0.05, 0.34), (0.38, 0.66), (0.70, 0.95)],
    }
    if is_van and rng.random() < 0.6:  # no windows behind the front seats
        panes["left"], panes["right"] = [(0.70, 0.95)], [(0.70, 0.95)]
    rows = (0.3, 0.9) if is_van else (0.12, 0.9)
    for name, indices in _CABIN_FACES.items():
        outline = corners[list(indices)]
        details = [(part(outline, pane, rows), glass) for pane in panes.get(name, [])]
        yield from _visible_face(vehicle, outline, middle, partial(list, details))


_CABIN_FACES = {
    "rear": (0, 1, 5, 4),
    "front": (2, 3, 7, 6),
    "right": (0, 3, 7, 4),
    "left": (1, 2, 6, 5),
    "roof": (4, 5, 6, 7),
}


def _cabin_corners(base: Points, roof: Points, half_base: float, half_roof: float) -> Points:
    """Return (8, 3): rear right, rear left, front left, front right; base, then roof."""
    corners = [
        (*profile[end], side * half)
        for profile, half in ((base, half_base), (roof, half_roof))
        for end, side in ((0, -1), (0, 1), (1, 1), (1, -1))
    ]
    return np.array(corners)
