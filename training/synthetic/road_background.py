"""Background of synthetic road scenes: ground, sky, facades, roadside objects, and the camera."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.sample import FloatArray, Pixels
from training.synthetic.shapes import unit_circle
from training.synthetic.vehicle_details import Points

WIDTH, HEIGHT = 621, 207
FOCAL_PX, CENTER_X_PX, CENTER_Y_PX = 721.5377, 309.5593, 64.854
CAMERA_HEIGHT_M = 1.65
PROJECTION = (
    *(FOCAL_PX, 0.0, CENTER_X_PX, 0.0),
    *(0.0, FOCAL_PX, CENTER_Y_PX, 0.0),
    *(0.0, 0.0, 1.0, 0.0),
)
"""(3, 4) row by row: KITTI's left colour camera, cropped to half of its width."""

_NEAREST_M = 0.6
_HORIZON = round(CENTER_Y_PX)

# Constant noise tables; every image uses random crops of them.
_noise_rng = np.random.default_rng(0)
_SPECKLE: FloatArray = _noise_rng.standard_normal((512, 512)).astype(np.float32)
_GRAIN: FloatArray = _noise_rng.standard_normal((HEIGHT + 256, WIDTH + 256)).astype(np.float32)


@dataclass(frozen=True)
class Road:
    """A straight road or yard in front of the camera.

    Attributes:
        yaw: direction relative to the optical axis in radians; positive to the right.
        middle_m: position of its middle to the right of the camera, metres.
        half_width_m: distance from the middle to the kerb.
        is_yard: whether vehicles have any orientation.
    """

    yaw: float
    middle_m: float
    half_width_m: float
    is_yard: bool

    def to_camera_frame(self, across: NDArray[np.float64], along: NDArray[np.float64]) -> Points:
        """Convert ground coordinates to points in camera coordinates, (n, 3)."""
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        x = self.middle_m + cosine * across + sine * along
        z = cosine * along - sine * across
        return np.stack([x, np.full_like(x, CAMERA_HEIGHT_M), z], axis=-1)


def random_road(rng: Generator) -> Road:
    """Draw a street or a yard."""
    is_yard = bool(rng.random() < 0.35)
    half_width = float(rng.uniform(9, 18) if is_yard else rng.uniform(4.5, 8.0))
    middle = float(rng.uniform(-0.25, 0.25) * half_width) if is_yard else -half_width * 0.45
    yaw = float(rng.normal(0, 0.06))
    return Road(yaw, middle if rng.random() < 0.75 else -middle, half_width, is_yard)


def project(points: Points) -> NDArray[np.float64]:
    """Project points in camera coordinates, (..., 3), to pixels, (..., 2); left edge at 0."""
    return points[..., :2] / points[..., 2:] * FOCAL_PX + (CENTER_X_PX, CENTER_Y_PX)


def fill(
    canvas: Pixels,
    polygon_px: NDArray[np.float64],
    colour: Sequence[float],
    edges: int = cv2.LINE_AA,
) -> None:
    """Fill a convex polygon, (n, 2) in pixels of :func:`project`, by default anti-aliased."""
    fill_fixed_point(canvas, to_fixed_point(polygon_px), colour, edges)


def to_fixed_point(points_px: NDArray[np.float64]) -> NDArray[np.int32]:
    """Convert pixels of :func:`project` to the fixed-point coordinates of OpenCV."""
    # Sixteenths of a pixel from the center of the first pixel, clipped far outside the image.
    return np.asarray(np.rint((points_px * 16 - 8).clip(-(2**18), 2**18)), np.int32)


def fill_fixed_point(
    canvas: Pixels, polygon: NDArray[np.int32], colour: Sequence[float], edges: int = cv2.LINE_AA
) -> None:
    """Fill a convex polygon of :func:`to_fixed_point` points."""
    cv2.fillConvexPoly(canvas, polygon, colour, edges, shift=4)


def fill_ground(canvas: Pixels, corners: Points, colour: Sequence[float]) -> None:
    """Fill a convex polygon, (n, 3), and clip the part behind the camera."""
    clipped: list[Points] = []
    for first, second in zip(corners, [*corners[1:], corners[0]], strict=True):
        if first[2] >= _NEAREST_M:
            clipped.append(first)
        if (first[2] >= _NEAREST_M) != (second[2] >= _NEAREST_M):
            share = (_NEAREST_M - first[2]) / (second[2] - first[2])
            clipped.append(first + share * (second - first))
    if len(clipped) >= 3:
        fill(canvas, project(np.array(clipped)), colour)


def paint_background(rng: Generator, road: Road) -> Pixels:
    """Paint sky, land, road, markings and facades; uint8 (207, 621, 3) RGB."""
    canvas = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    _paint_sky(rng, canvas)
    land = rng.uniform([50, 60, 35], [150, 160, 110])
    if rng.random() < 0.4:  # pavement instead of grass
        land = np.full(3, rng.uniform(80, 190)) + rng.normal(0, 8, 3)
    canvas[_HORIZON:] = land.clip(0, 255).astype(np.uint8)
    asphalt = np.full(3, rng.uniform(50, 150)) + rng.normal(0, 4, 3)
    kerb = road.half_width_m
    _strip(canvas, road, (-kerb - 0.25, kerb + 0.25), asphalt + rng.uniform(10, 60))
    _strip(canvas, road, (-kerb, kerb), asphalt)
    if rng.random() < 0.3:  # a crossing road
        near = float(rng.uniform(9, 40))
        _strip(canvas, road, (-90, 90), asphalt, (near, near + rng.uniform(5, 9)))
    _paint_texture(rng, canvas)
    _paint_markings(rng, canvas, road)
    _paint_facades(rng, canvas, road)
    return canvas


def _strip(
    canvas: Pixels,
    road: Road,
    across: tuple[float, float],
    colour: NDArray[np.float64],
    along: tuple[float, float] = (-5.0, 300.0),
) -> None:
    corners = road.to_camera_frame(
        np.array([*across, *across[::-1]]), np.repeat(along, 2).astype(float)
    )
    fill_ground(canvas, corners, np.minimum(np.maximum(colour, 0), 255).tolist())


def _paint_sky(rng: Generator, canvas: Pixels) -> None:
    high = rng.uniform([70, 110, 150], [215, 225, 250])
    low = high + (235 - high) * rng.uniform(0.2, 0.9)
    part = np.linspace(0, 1, 12)[:, None, None]
    clouds = rng.normal(0, rng.uniform(1, 14), (12, 20, 1))
    sky = np.clip(high + (low - high) * part + clouds, 0, 255).astype(np.uint8)
    canvas[:_HORIZON] = cv2.resize(sky, (WIDTH, _HORIZON))
    # Distant hills, trees and houses.
    x = 0
    while x < WIDTH:
        width, height = int(rng.uniform(15, 130)), int(rng.exponential(14))
        colour = (rng.uniform(50, 150) + rng.normal(0, 12, 3) + (0, 8, 0)).tolist()
        if rng.random() < 0.5:
            top = _HORIZON - height
            cv2.rectangle(canvas, (x, top), (x + width, _HORIZON), colour, -1)
        else:
            axes = (width, height + 3)
            cv2.ellipse(canvas, (x, _HORIZON), axes, 0, 180, 360, colour, -1)
        x += int(width * rng.uniform(0.4, 1.2))


def _paint_texture(rng: Generator, canvas: Pixels) -> None:
    """Add ground texture that gets finer with distance."""
    below = canvas[_HORIZON:]
    # At half the resolution, which is not noticeable.
    size = (WIDTH // 2, len(below) // 2)
    total = np.zeros(size[::-1], np.float32)
    for metres_per_cell, strength in ((0.06, rng.uniform(2, 8)), (0.6, rng.uniform(1, 7))):
        # Homography from pixels below the horizon to cells of the table.
        height = 2 * CAMERA_HEIGHT_M / metres_per_cell
        shift = rng.uniform(0, 512, 2)
        to_table = np.array(
            [
                [height, shift[0], -CENTER_X_PX / 2 * height],
                [0, shift[1], FOCAL_PX / 2 * height],
                [0, 2, 0.4],
            ]
        )
        table = cv2.warpPerspective(
            _SPECKLE,
            to_table,
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_WRAP,
        )
        total += np.float32(strength) * table
    total = cv2.resize(total, (WIDTH, len(below)))
    cv2.add(below, cv2.merge([total] * 3), dst=below, dtype=cv2.CV_8U)


def _paint_markings(rng: Generator, canvas: Pixels, road: Road) -> None:
    colour = np.full(3, rng.uniform(170, 240))
    if road.is_yard:
        if rng.random() < 0.7:  # bays
            depth, step = rng.uniform(4.5, 6), rng.uniform(2.4, 3)
            for along in np.arange(4, 45, step):
                for end in (-1, 1):
                    edge = end * (road.half_width_m - depth)
                    across = (min(edge, edge + end * depth), max(edge, edge + end * depth))
                    _strip(canvas, road, across, colour, (along, along + 0.12))
        return
    lanes = int(rng.integers(2, 5))
    dash, gap = rng.uniform(2, 5), rng.uniform(2, 7)
    for number in range(1, lanes):
        middle = road.half_width_m * (2 * number / lanes - 1)
        line = middle - 0.07, middle + 0.07
        if rng.random() < 0.25:
            _strip(canvas, road, line, colour)
            continue
        for along in np.arange(-4 + rng.uniform(0, 6), 70, dash + gap):
            _strip(canvas, road, line, colour, (along, along + dash))


def _paint_facades(rng: Generator, canvas: Pixels, road: Road) -> None:
    """Paint walls with windows along both sides, the farthest first."""
    for side in (-1, 1):
        if rng.random() < 0.35:
            continue
        across = side * (road.half_width_m + rng.uniform(3.5, 9))
        ends = np.cumsum(np.concatenate([[rng.uniform(2, 14)], rng.uniform(5, 16, 8)]))
        for start, end in zip(ends[:-1][::-1], ends[1:][::-1], strict=True):
            if rng.random() < 0.8:
                _paint_wall(rng, canvas, road, across, (start, end - rng.uniform(0, 2)))


def _paint_wall(
    rng: Generator, canvas: Pixels, road: Road, across: float, along: tuple[float, float]
) -> None:
    base = road.to_camera_frame(np.full(2, across), np.array(along))
    if base[:, 2].min() < 1:
        return
    height = float(rng.uniform(2.2, 11))
    colour = rng.uniform(60, 220) + rng.normal(0, 18, 3)
    lift = np.array([0, height, 0])
    outline = np.concatenate([base, base[::-1] - lift])
    fill(canvas, project(outline), colour.clip(0, 255).tolist())
    columns, rows = int(rng.integers(2, 6)), max(1, int(height / 2.8))
    glass = (rng.uniform(20, 130) + rng.normal(0, 12, 3)).clip(0, 255).tolist()
    column, row = (values.ravel() for values in np.meshgrid(range(columns), range(rows)))
    u = (column[:, None] + np.array([0.25, 0.75, 0.75, 0.25])) / columns
    v = (row[:, None] + np.array([0.35, 0.35, 0.8, 0.8])) / rows
    corners = base[0] + u[..., None] * (base[1] - base[0]) - v[..., None] * lift
    for window in to_fixed_point(project(corners)):
        fill_fixed_point(canvas, window, glass)


@dataclass(frozen=True)
class RoadsideObject:
    """A tree, pole, sign or bush at ``location_m``."""

    location_m: tuple[float, float, float]
    seed: int

    def paint(self) -> Iterator[tuple[NDArray[np.float64], list[float]]]:
        """Yield convex polygons (n, 2) in pixels and their colours in painting order."""
        rng = np.random.default_rng(self.seed)
        base = np.array(self.location_m)
        scale = FOCAL_PX / base[2]
        x, y = project(base)
        circle = unit_circle(14)
        kind = int(rng.integers(4))
        green = rng.uniform([25, 45, 15], [110, 140, 75])
        if kind < 3:
            height, half = rng.uniform(1.2, 6) * scale, rng.uniform(0.04, 0.16) * scale
            post = np.array([(-half, 0), (half, 0), (half, -height), (-half, -height)])
            yield post + np.array([x, y]), rng.uniform([40, 35, 30], [150, 145, 140]).tolist()
            if kind == 1:  # a sign
                yield (
                    circle * rng.uniform(0.25, 0.45) * scale + (x, y - height),
                    rng.uniform(20, 245, 3).tolist(),
                )
            if kind == 2:  # a tree crown
                for _ in range(5):
                    middle = (x, y - height) + rng.normal(0, 0.6, 2) * scale
                    leaves = circle * rng.uniform(0.6, 1.5, 2) * scale
                    yield middle + leaves, (green * rng.uniform(0.6, 1.3)).tolist()
        else:
            for _ in range(3):
                half = rng.uniform(0.3, 0.9, 2) * scale
                middle = (x + rng.normal(0, 0.5) * scale, y - half[1] * 0.8)
                yield middle + circle * half, (green * rng.uniform(0.6, 1.3)).tolist()


def simulate_camera(rng: Generator, canvas: Pixels) -> Pixels:
    """Simulate illumination, contrast, focus and sensor noise; uint8 (H, W, 3)."""
    contrast, tint = rng.uniform(0.75, 1.15), np.exp(rng.normal(0, 0.03, 3))
    values = np.arange(256, dtype=np.float64)[:, None]
    values = (128 + contrast * (values - 128) + rng.normal(0, 14)) * tint
    # A random gamma curve.
    curve = 255 * np.clip(values / 255, 0, 1) ** np.exp(rng.normal(0, 0.18))
    lit = cv2.LUT(canvas, np.asarray(curve + 0.5, np.uint8)[None])
    lit = cv2.GaussianBlur(lit, (5, 5), rng.uniform(0.4, 1.1))
    top, left = rng.integers(0, 256, 2)
    grain = _GRAIN[top : top + HEIGHT, left : left + WIDTH] * np.float32(rng.uniform(0.5, 6))
    return np.asarray(cv2.add(lit, cv2.merge([grain] * 3), dtype=cv2.CV_8U), np.uint8)
