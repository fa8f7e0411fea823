"""Details on the faces of synthetic vehicles: lamps, plates, doors, wheels.

Points are in vehicle coordinates, see :mod:`training.synthetic.vehicles`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.sample import FloatArray
from training.synthetic.shapes import unit_circle

Points = NDArray[np.float64]
"""float64 (n, 3)."""

Detail = tuple[Points, FloatArray]
"""A convex polygon and its colour, RGB 0...255."""


WHEEL_M = 0.33
"""Radius of wheels."""

_CIRCLE = np.pad(unit_circle(16), ((0, 0), (0, 1)))
_WHITE = (235, 235, 215), (255, 255, 250)
_RED = (215, 0, 0), (255, 40, 30)
_TYRE: FloatArray = np.array([24, 24, 26], np.float32)


def front_details(rng: Generator, outline: Points) -> list[Detail]:
    """Return bumper, grille and plate."""
    return [
        (part(outline, (0, 1), (0, 0.3)), _grey(rng, 25, 80)),
        (part(outline, (0.33, 0.67), (0.42, 0.92)), _grey(rng, 10, 60)),
        (part(outline, (0.36, 0.64), (0.2, 0.38)), _grey(rng, 215, 245)),
    ]


def rear_details(rng: Generator, outline: Points) -> list[Detail]:
    """Return bumper and plate."""
    plate = np.array([240, 205, 60], np.float32) if rng.random() < 0.3 else _grey(rng, 215, 245)
    return [
        (part(outline, (0, 1), (0, 0.28)), _grey(rng, 25, 80)),
        (part(outline, (0.36, 0.64), (0.4, 0.58)), plate),
    ]


def lamp_pair(rng: Generator, outline: Points, *, is_front: bool) -> list[Detail]:
    """Return two white (front) or red (rear) lamps at the ends of the face."""
    width, low = rng.uniform(0.2, 0.3), rng.uniform(0.36, 0.52)
    darkest, brightest = _WHITE if is_front else _RED
    colour = rng.uniform(darkest, brightest).astype(np.float32)
    ends = (0.02, width), (1 - width, 0.98)
    return [(part(outline, end, (low, 0.95)), colour) for end in ends]


def side_details(
    rng: Generator, profile: Points, z: float, paint: FloatArray, stripe_probability: float
) -> Iterator[Detail]:
    """Yield skirt, optional stripe, doors, wheel arches and wheels of the body's ``profile``."""
    length = 2 * profile[1, 0]
    low, middle = profile[0, 1], profile[3, 1]
    rows = low + (middle - low) * np.array([0.0, 0.16, 0.55, 0.55 + rng.uniform(0.05, 0.25)])
    yield _rectangle((-length / 2, length / 2), rows[:2], z), _grey(rng, 20, 70)
    if rng.random() < stripe_probability:
        colour = rng.uniform(10, 245, 3).astype(np.float32)
        yield _rectangle((-0.48 * length, 0.44 * length), rows[2:], z), colour
    for x in (-0.12, 0.07, 0.26):
        seam = (x * length, x * length + 0.03)
        yield _rectangle(seam, np.array([rows[1], middle]), z), paint * np.float32(0.45)
    rim = _grey(rng, 90, 210)
    for x in (-0.31 * length, 0.32 * length):
        yield disc(x, z, WHEEL_M + 0.06, up_to=low), _TYRE * np.float32(0.6)
        yield disc(x, z, WHEEL_M), _TYRE
        yield disc(x, z, 0.6 * WHEEL_M), rim


def part(outline: Points, across: tuple[float, float], along: tuple[float, float]) -> Points:
    """Return a part of a quad whose first edge is at ``along`` 0 and whose last at 1."""
    (left, right), (low, high) = across, along
    u, v = np.array([left, right, right, left]), np.array([low, low, high, high])
    shares = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], axis=1)
    return shares @ outline


def _rectangle(x: tuple[float, float], y: NDArray[np.float64], z: float) -> Points:
    return np.array([(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)])


def disc(x: float, z: float, radius_m: float, up_to: float = 0.0) -> Points:
    """Return the side of a wheel, (16, 3), cut off below ``up_to``."""
    disc = _CIRCLE * radius_m + (x, -WHEEL_M, z)
    np.minimum(disc[:, 1], up_to, out=disc[:, 1])
    return disc


def _grey(rng: Generator, low: float, high: float) -> FloatArray:
    return np.full(3, rng.uniform(low, high), np.float32)
