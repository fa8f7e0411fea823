"""Painting of vehicles and their shadows in synthetic road scenes."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.sample import Pixels
from training.synthetic.road_background import (
    CAMERA_HEIGHT_M,
    CENTER_Y_PX,
    HEIGHT,
    WIDTH,
    fill_fixed_point,
    fill_ground,
    project,
    to_fixed_point,
)
from training.synthetic.vehicle_details import Points
from training.synthetic.vehicles import Vehicle, faces, wheels

Box = NDArray[np.float64]
"""float64 (4,): left, top, right, bottom in pixels; the left edge of the image is 0."""


def random_sun_direction(rng: Generator) -> NDArray[np.float64]:
    """Draw the direction to the sun, a unit vector (3,)."""
    elevation, azimuth = rng.uniform(0.55, 1.4), rng.uniform(-np.pi, np.pi)
    flat = np.cos(elevation)
    return np.array([flat * np.cos(azimuth), -np.sin(elevation), flat * np.sin(azimuth)])


def paint_shadows(
    rng: Generator, canvas: Pixels, vehicles: Sequence[Vehicle], sun: NDArray[np.float64]
) -> None:
    """Darken the ground below vehicles and in their shadows."""
    shade = np.zeros((HEIGHT, WIDTH), np.uint8)
    if rng.random() < 0.75:
        depth = float(rng.uniform(60, 150))
        for vehicle in vehicles:
            for corners in _solids(vehicle):
                drop = (CAMERA_HEIGHT_M - corners[:, 1:2]) / sun[1]
                on_ground = corners + drop * sun
                hull = cv2.convexHull(on_ground[:, (0, 2)].astype(np.float32))[:, 0]
                ground = np.insert(hull.astype(float), 1, CAMERA_HEIGHT_M, axis=1)
                fill_ground(shade, ground, (depth,))
    for vehicle in vehicles:
        _, width, length = vehicle.dimensions_m
        x, z = 0.47 * length, 0.46 * width
        corners = np.array([(-x, 0, -z), (x, 0, -z), (x, 0, z), (-x, 0, z)])
        fill_ground(shade, vehicle.to_camera_frame(corners), (190,))
    below = slice(int(CENTER_Y_PX), None)
    light = 255 - cv2.GaussianBlur(shade[below], (5, 5), 1.2)
    canvas[below] = cv2.multiply(canvas[below], cv2.merge([light] * 3), scale=1 / 255)


def _solids(vehicle: Vehicle) -> tuple[np.ndarray, np.ndarray]:
    """Return approximate corners (8, 3) of body and cabin in camera coordinates."""
    height, width, length = vehicle.dimensions_m
    belt, rear, roof_rear, roof_front, front = vehicle.profile
    z = np.array([-0.5, 0.5]) * width
    body = [
        (x, y, side)
        for x in (-0.5 * length, 0.5 * length)
        for y in (-0.2, -belt * height)
        for side in z
    ]
    cabin = [
        ((x - 0.5) * length, y, 0.85 * side)
        for x, y in (
            *((rear, -belt * height), (front, -belt * height)),
            *((roof_rear, -height), (roof_front, -height)),
        )
        for side in z
    ]
    return vehicle.to_camera_frame(np.array(body)), vehicle.to_camera_frame(np.array(cabin))


def paint_vehicle(
    canvas: Pixels,
    instance_map: NDArray[np.uint8],
    number: int,
    vehicle: Vehicle,
    sun: NDArray[np.float64],
    ambient: float,
) -> tuple[Box, int]:
    """Paint a vehicle and its ``number`` in the map; return its box and number of pixels."""
    polygons: list[Points] = []
    tones: list[list[float]] = []
    solids: list[int] = []
    for corners in wheels(vehicle):
        solids.append(len(polygons))
        polygons.append(corners)
        tones.append([22, 22, 24])
    for face in faces(vehicle):
        light = ambient + (1.25 - ambient) * max(0.0, float(face.outward @ sun))
        solids.append(len(polygons))
        for polygon, colour in ((face.outline, vehicle.paint), *face.details):
            polygons.append(polygon)
            tones.append(np.minimum(colour * light, 255).tolist())
        for polygon, colour in face.lamps:
            polygons.append(polygon)
            tones.append(colour.tolist())
    # Projecting all polygons at once is faster.
    points = project(vehicle.to_camera_frame(np.concatenate(polygons)))
    ends = np.cumsum([len(polygon) for polygon in polygons])
    flat = np.split(to_fixed_point(points), ends[:-1])
    flat[:4] = [np.asarray(cv2.convexHull(tyre), np.int32) for tyre in flat[:4]]
    for shape, tone in zip(flat, tones, strict=True):
        fill_fixed_point(canvas, shape, tone)
    mask = np.zeros(instance_map.shape, np.uint8)
    for index in solids:
        fill_fixed_point(mask, flat[index], (1,), cv2.LINE_8)
    np.copyto(instance_map, number, where=mask.view(bool))
    # Details are on faces, so they do not extend the box.
    return np.concatenate([points.min(axis=0), points.max(axis=0)]), cv2.countNonZero(mask)
