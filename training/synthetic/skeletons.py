"""Random bodies: 3D positions of COCO's 17 keypoints, and the limbs between them.

Body coordinates: x to the person's left, y down, z forward, in units of the body's height. After
the rotation z points to the viewer, and x and y are the directions of the image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model_export.class_names import COCO_KEYPOINTS

Points = NDArray[np.float64]

_LEFT, _RIGHT = 1.0, -1.0
_INDEX = {name: index for index, name in enumerate(COCO_KEYPOINTS)}


@dataclass(frozen=True)
class Limb:
    """A part of a body between two points.

    Attributes:
        kind: ``torso``, ``sleeve``, ``forearm``, ``thigh``, ``shin``, ``foot``,
            ``hand``, ``neck`` or ``head``.
        start, end: float64 (3,), coordinates as in the module docstring.
        radii: radius at start and end.
        keypoints: indices of the keypoints on its surface.
    """

    kind: str
    start: Points
    end: Points
    radii: tuple[float, float]
    keypoints: tuple[int, ...]


@dataclass(frozen=True)
class Body:
    """A body: ``keypoints``, float64 (17, 3), and its limbs."""

    keypoints: Points
    limbs: tuple[Limb, ...]


def random_body(rng: Generator) -> Body:
    """Draw a body that stands, walks, waves or sits, in a random view."""
    build = float(rng.uniform(0.85, 1.2))
    points = {
        "neck": np.array([0.0, -0.31, 0.0]),
        "head": np.array([0.0, -0.43, 0.015]),
        "nose": np.array([0.0, -0.425, 0.085]),
        "waist": np.zeros(3),
    }
    is_sitting = rng.random() < 0.1
    for side, sign in (("left", _LEFT), ("right", _RIGHT)):
        points[f"{side}_eye"] = np.array([sign * 0.028, -0.445, 0.072])
        points[f"{side}_ear"] = np.array([sign * 0.065, -0.435, 0.0])
        points[f"{side}_shoulder"] = np.array([sign * 0.115 * build, -0.28, 0.0])
        points[f"{side}_hip"] = np.array([sign * 0.06 * build, 0.0, 0.0])
        _place_arm(rng, points, side, sign)
        _place_leg(rng, points, side, sign, is_sitting)
    rotation = _random_rotation(rng)
    rotated = {name: rotation @ point for name, point in points.items()}
    keypoints = np.stack([rotated[name] for name in COCO_KEYPOINTS])
    return Body(keypoints, _limbs(rotated, build))


def _place_arm(rng: Generator, points: dict[str, Points], side: str, sign: float) -> None:
    swing = float(rng.normal(0.1, 0.3)) if rng.random() < 0.9 else float(rng.uniform(0.5, 2.8))
    spread = float(np.abs(rng.normal(0.2, 0.2)))
    bend = float(np.clip(rng.gamma(2.0, 0.15), 0.0, 2.2))
    points[f"{side}_elbow"] = points[f"{side}_shoulder"] + 0.16 * _direction(swing, spread, sign)
    lower = _direction(swing + bend, spread * rng.uniform(-0.5, 1.0), sign)
    points[f"{side}_wrist"] = points[f"{side}_elbow"] + 0.15 * lower
    points[f"{side}_hand"] = points[f"{side}_wrist"] + 0.045 * lower


def _place_leg(
    rng: Generator, points: dict[str, Points], side: str, sign: float, is_sitting: bool
) -> None:
    swing = float(rng.normal(1.45, 0.1)) if is_sitting else float(rng.normal(0.0, 0.3))
    spread = float(np.abs(rng.normal(0.03, 0.1)))
    bend = float(rng.normal(1.4, 0.2)) if is_sitting else float(np.abs(rng.normal(0.0, 0.3)))
    points[f"{side}_knee"] = points[f"{side}_hip"] + 0.24 * _direction(swing, spread, sign)
    lower = _direction(swing - bend, spread, sign)
    points[f"{side}_ankle"] = points[f"{side}_knee"] + 0.23 * lower
    forward = _direction(swing - bend + np.pi / 2, spread, sign)
    points[f"{side}_toe"] = points[f"{side}_ankle"] + 0.09 * forward + 0.03 * lower


def _direction(swing: float, spread: float, sign: float) -> Points:
    """Return the unit vector down, rotated forward by ``swing`` and outward by ``spread``."""
    return np.array(
        [sign * np.sin(spread), np.cos(spread) * np.cos(swing), np.cos(spread) * np.sin(swing)]
    )


def _random_rotation(rng: Generator) -> Points:
    """Draw a rotation: in 3 of 4 bodies towards the camera, with slight roll and pitch."""
    yaw = rng.normal(0.0, 0.6) if rng.random() < 0.75 else rng.uniform(-np.pi, np.pi)
    roll, pitch = rng.normal(0.0, 0.1), rng.normal(0.05, 0.1)
    cy, sy, cr, sr, cp, sp = (f(a) for a in (yaw, roll, pitch) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    rotation: Points = about_y @ about_z @ about_x
    return rotation


def _limbs(points: dict[str, Points], build: float) -> tuple[Limb, ...]:
    def limb(kind: str, start: str, end: str, radii: tuple[float, float], *names: str) -> Limb:
        thick = (radii[0] * build, radii[1] * build)
        keypoints = tuple(_INDEX[name] for name in names)
        return Limb(kind, points[start], points[end], thick, keypoints)

    limbs = [
        limb("neck", "neck", "head", (0.03, 0.03)),
        limb("head", "head", "head", (0.07, 0.07), *(name for name in COCO_KEYPOINTS[:5])),
    ]
    for side in ("left", "right"):
        limbs += [
            limb("torso", f"{side}_shoulder", f"{side}_hip", (0.052, 0.06),
                 f"{side}_shoulder", f"{side}_hip"),
            limb("torso", "neck", "waist", (0.06, 0.075)),
            limb("sleeve", f"{side}_shoulder", f"{side}_elbow", (0.045, 0.034),
                 f"{side}_shoulder", f"{side}_elbow"),
            limb("forearm", f"{side}_elbow", f"{side}_wrist", (0.033, 0.023),
                 f"{side}_elbow", f"{side}_wrist"),
            limb("hand", f"{side}_wrist", f"{side}_hand", (0.024, 0.024), f"{side}_wrist"),
            limb("thigh", f"{side}_hip", f"{side}_knee", (0.066, 0.045),
                 f"{side}_hip", f"{side}_knee"),
            limb("shin", f"{side}_knee", f"{side}_ankle", (0.043, 0.028),
                 f"{side}_knee", f"{side}_ankle"),
            limb("foot", f"{side}_ankle", f"{side}_toe", (0.03, 0.025), f"{side}_ankle"),
        ]  # fmt: skip
    return tuple(limbs)
