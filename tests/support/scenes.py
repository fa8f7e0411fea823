"""Tiny labelled datasets on disk: 2D boxes, poses and 3D boxes."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

KEYPOINTS = ("head", "left_hand", "right_hand", "left_foot", "right_foot")
CLASSES = ("disc", "square")
FOCAL_PX = 145.0
BOXES_3D_SIZE = (256, 96)
PROJECTION = (FOCAL_PX, 0, 128, 0, 0, FOCAL_PX, 48, 0, 0, 0, 1, 0)
"""Projection matrix of the scenes with 3D boxes, (3, 4) row by row."""

_CAMERA_HEIGHT_M = 1.6
_ANNOTATIONS = "labels.json"


@dataclass(frozen=True)
class Cuboid:
    """A 3D box as in KITTI: dimensions (height, width, length), bottom center and rotation."""

    dimensions_m: tuple[float, float, float]
    location_m: tuple[float, float, float]
    rotation_y: float

    def corners_m(self) -> np.ndarray:
        """Return float64 (8, 3): four corners at the bottom, then four at the top."""
        height, width, length = self.dimensions_m
        x = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * length / 2
        z = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * width / 2
        y = np.array([0, 0, 0, 0, -1, -1, -1, -1]) * height
        cosine, sine = np.cos(self.rotation_y), np.sin(self.rotation_y)
        rotated = np.stack([cosine * x + sine * z, y, -sine * x + cosine * z], axis=1)
        return rotated + self.location_m

    def corners_px(self) -> np.ndarray:
        """Return the projected corners, float64 (8, 2)."""
        projected = self.corners_m() @ np.reshape(PROJECTION, (3, 4))[:, :3].T
        return projected[:, :2] / projected[:, 2:]

    def label(self) -> str:
        """Return the line of a KITTI label file, with class Car."""
        corners = np.clip(self.corners_px(), 0, (BOXES_3D_SIZE[0] - 1, BOXES_3D_SIZE[1] - 1))
        box = (*corners.min(axis=0), *corners.max(axis=0))
        x, _, z = self.location_m
        alpha = (self.rotation_y - np.arctan2(x, z) + np.pi) % (2 * np.pi) - np.pi
        numbers = (alpha, *box, *self.dimensions_m, *self.location_m, self.rotation_y)
        return "Car 0.00 0 " + " ".join(f"{number:.4f}" for number in numbers)


def write_boxes(directory: Path, count: int, side: int = 128) -> Path:
    """Write images of discs and squares; return the COCO file."""
    document: dict[str, Any] = _document([{"id": i, "name": n} for i, n in enumerate(CLASSES)])
    for index in range(count):
        rng = np.random.default_rng((1, index))
        pixels = _background(rng, side, side)
        for x, y in _random_centers(rng, 2 + index % 2, side):
            size = int(rng.integers(24, 44))
            class_id = int(rng.integers(2))
            colour = [int(value) for value in rng.integers(60, 256, 3)]
            if class_id == 0:
                cv2.circle(pixels, (x, y), size // 2, colour, -1)
            else:
                corner = (x - size // 2, y - size // 2)
                cv2.rectangle(pixels, corner, (corner[0] + size, corner[1] + size), colour, -1)
            middle = (x + 0.5, y + 0.5)
            low = np.clip([x - size // 2, y - size // 2], 0, side)
            high = np.clip([x + size // 2 + 1, y + size // 2 + 1], 0, side)
            _annotate(document, index, class_id, [*low, *(high - low)])
            # Of a side without a single extreme point, the middle.
            document["annotations"][-1]["extreme_points"] = [
                [middle[0], float(low[1])],
                [float(low[0]), middle[1]],
                [middle[0], float(high[1])],
                [float(high[0]), middle[1]],
            ]
        _save(directory, document, index, pixels)
    return _write(directory, document)


def write_poses(directory: Path, count: int, side: int = 128) -> Path:
    """Write images of stick figures with :data:`KEYPOINTS`; return the COCO file."""
    document = _document([{"id": 1, "name": "figure", "keypoints": list(KEYPOINTS)}])
    for index in range(count):
        rng = np.random.default_rng((2, index))
        pixels = _background(rng, side, side)
        for x, y in _random_centers(rng, 1 + index % 2, side):
            points = np.array([[0, -24], [18, 0], [-18, 0], [9, 26], [-9, 26]]) + np.array([x, y])
            points = np.clip(points + rng.integers(-5, 6, points.shape), 2, side - 3)
            hips, neck = (points[3] + points[4]) // 2 - [0, 16], points[0] + [0, 8]
            for keypoint, start in zip(points, (neck, neck, neck, hips, hips), strict=True):
                cv2.line(pixels, start.tolist(), keypoint.tolist(), (230, 230, 230), 3)
            cv2.line(pixels, neck.tolist(), hips.tolist(), (230, 230, 230), 4)
            # Colours distinguish the left hand and foot from the right ones.
            for keypoint, colour in zip(
                points, ((250, 200, 90), (240, 60, 60), (60, 60, 240)) * 2, strict=False
            ):
                cv2.circle(pixels, keypoint.tolist(), 4, colour, -1)
            low, high = (
                np.clip(points.min(axis=0) - 5, 0, side),
                np.clip(points.max(axis=0) + 6, 0, side),
            )
            keypoints = np.column_stack([points + 0.5, np.full(len(points), 2)])
            _annotate(document, index, 1, [*low, *(high - low)], keypoints.ravel().tolist())
        _save(directory, document, index, pixels)
    return _write(directory, document)


def write_boxes_3d(directory: Path, count: int) -> list[list[Cuboid]]:
    """Write images of vehicles with KITTI labels and ``names.txt``; return the 3D boxes."""
    scenes = []
    for index in range(count):
        rng = np.random.default_rng((3, index))
        scene = [
            Cuboid(
                (rng.uniform(1.4, 1.8), rng.uniform(1.6, 2.0), rng.uniform(3.2, 4.2)),
                (side + rng.uniform(-1, 1), _CAMERA_HEIGHT_M, rng.uniform(13, 22)),
                rng.uniform(-np.pi, np.pi),
            )
            for side in ((-3.5, 3.5) if index % 2 else (0.0,))
        ]
        (directory / f"{index:06d}.txt").write_text("\n".join(c.label() for c in scene) + "\n")
        cv2.imwrite(str(directory / f"{index:06d}.png"), _draw_boxes_3d(rng, scene)[..., ::-1])
        scenes.append(scene)
    names = "".join(f"{index:06d}\n" for index in range(count))
    (directory / "names.txt").write_text(names)
    return scenes


def _draw_boxes_3d(rng: np.random.Generator, scene: Sequence[Cuboid]) -> np.ndarray:
    pixels = _background(rng, *BOXES_3D_SIZE)
    pixels[48:] = pixels[48:] // 2 + 40
    for cuboid in sorted(scene, key=lambda c: -c.location_m[2]):
        corners, tint = cuboid.corners_px(), rng.uniform(0.5, 1.0, 3)
        faces = ((0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7), (4, 5, 6, 7))
        depths = cuboid.corners_m()[:, 2]
        # Farthest face first. Each has its own shade, which distinguishes front and back.
        for face in sorted(range(5), key=lambda f: -depths[list(faces[f])].mean()):
            shade = (250, 160, 110, 200, 70)[face] * tint
            cv2.fillConvexPoly(pixels, corners[list(faces[face])].round().astype(np.int32), shade)
    return pixels


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    coarse = rng.integers(0, 90, (4, 4, 3)).astype(np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def _random_centers(rng: np.random.Generator, count: int, side: int) -> list[tuple[int, int]]:
    """Draw centers of quarters of the image with small offsets."""
    quarters = list(itertools.product((side // 4, 3 * side // 4), repeat=2))
    indices = rng.permutation(4)[:count]
    return [tuple(int(v + rng.integers(-4, 5)) for v in quarters[i]) for i in indices]  # type: ignore[misc]


def _document(categories: list[dict[str, Any]]) -> dict[str, Any]:
    return {"images": [], "annotations": [], "categories": categories}


def _annotate(
    document: dict[str, Any],
    image_id: int,
    category_id: int,
    box: Sequence[float],
    keypoints: Sequence[float] = (),
) -> None:
    entry = {
        "id": len(document["annotations"]) + 1,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(value) for value in box],
        "area": float(box[2] * box[3]),
        "iscrowd": 0,
    }
    if keypoints:
        entry |= {"keypoints": list(keypoints), "num_keypoints": len(keypoints) // 3}
    document["annotations"].append(entry)


def _save(directory: Path, document: dict[str, Any], index: int, pixels: np.ndarray) -> None:
    name = f"{index}.png"
    cv2.imwrite(str(directory / name), pixels[..., ::-1])
    height, width = pixels.shape[:2]
    document["images"].append({"id": index, "file_name": name, "width": width, "height": height})


def _write(directory: Path, document: dict[str, Any]) -> Path:
    path = directory / _ANNOTATIONS
    path.write_text(json.dumps(document))
    return path
