"""Random views of annotated pictures, and the fixed view used for evaluation.

Frames: pixel centers have integer coordinates, so the left edge of a picture lies at -0.5. The
fixed view maps ``dst = k (src - size/2) + dst_size/2`` for pixel centers and, like the authors,
for box edges too. Random views place boxes so that they agree with that convention.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.annotated_image import AnnotatedImage, FloatArray, Pixels

Affine = NDArray[np.float64]
"""float64 (2, 3): source pixel centers to destination pixel centers."""

_MIN_VISIBLE_FRACTION = 0.25
"""A box of which the crop leaves less than this share is dropped: too little to recognise."""


@dataclass(frozen=True)
class AugmentationRanges:
    """How far random views may depart from the fixed one."""

    scale: tuple[float, float]
    brightness: float
    contrast: float
    saturation: float
    hue_degrees: float
    blur_probability: float


def evaluation_affine(width: int, height: int, input_width: int, input_height: int) -> Affine:
    """The view used at test time: centered, scaled by ``input_width / max(width, height)``."""
    scale = input_width / max(width, height)
    return _similarity(
        np.eye(2) * scale, (width / 2, height / 2), (input_width / 2, input_height / 2)
    )


def random_affine(
    rng: Generator,
    width: int,
    height: int,
    crop: int,
    base_scale: float,
    scale: tuple[float, float],
) -> Affine:
    """A random scale, quarter turn, mirroring and position of the ``crop`` x ``crop`` window."""
    factor = base_scale * np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1])))
    quarter = int(rng.integers(4))
    cosine, sine = (1, 0, -1, 0)[quarter], (0, 1, 0, -1)[quarter]
    mirror = rng.choice([-1.0, 1.0])
    linear = factor * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([mirror, 1.0])
    # The window stays inside the picture where the picture is larger, and centered where not.
    half_window = crop / factor / 2
    center = [
        rng.uniform(half_window, side - half_window) if side > 2 * half_window else side / 2
        for side in (width, height)
    ]
    # A window is symmetric about (crop - 1) / 2 in pixel centers, a picture about (side - 1) / 2.
    source = (center[0] - 0.5, center[1] - 0.5)
    return _similarity(linear, source, ((crop - 1) / 2, (crop - 1) / 2))


def _similarity(
    linear: Affine, source: tuple[float, float], destination: tuple[float, float]
) -> Affine:
    """The affine with this linear part that sends ``source`` to ``destination``."""
    shift = np.asarray(destination) - linear @ np.asarray(source)
    return np.column_stack([linear, shift])


def warp_pixels(pixels: Pixels, affine: Affine, width: int, height: int) -> Pixels:
    """Bilinear warp of uint8 (H, W, 3) onto a black canvas of the given size."""
    warped = cv2.warpAffine(pixels, affine, (width, height), flags=cv2.INTER_LINEAR)
    return np.asarray(warped, np.uint8)


def warp_boxes(boxes_xywh: FloatArray, affine: Affine) -> FloatArray:
    """Axis-parallel boxes, float32 (N, 4) x, y, w, h, around the warped ones; not clipped.

    A box edge at ``x`` runs half a pixel before the center of pixel ``x``. That half pixel is taken
    off in the source, and put back scaled, since that is where the fixed view puts edges.
    """
    linear, shift = affine[:, :2], affine[:, 2]
    half_pixel = 0.5 * np.sqrt(abs(np.linalg.det(linear)))
    corners = np.stack([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1) - 0.5
    warped = corners @ linear.T + shift + half_pixel  # (N, 2 corners, xy)
    low, high = warped.min(axis=1), warped.max(axis=1)
    return np.concatenate([low, high - low], axis=1).astype(np.float32)


def clip_to_canvas(image: AnnotatedImage) -> AnnotatedImage:
    """Clip boxes to the picture and drop those of which too little is left."""
    height, width = image.pixels.shape[:2]
    low = np.clip(image.boxes_xywh[:, :2], 0, (width, height))
    high = np.clip(image.boxes_xywh[:, :2] + image.boxes_xywh[:, 2:], 0, (width, height))
    clipped = np.concatenate([low, high - low], axis=1)
    kept = clipped[:, 2:].prod(axis=1) > _MIN_VISIBLE_FRACTION * image.boxes_xywh[:, 2:].prod(
        axis=1
    )
    return AnnotatedImage(
        image.pixels, clipped[kept].astype(np.float32), image.class_ids[kept].astype(np.int64)
    )


def random_view(
    rng: Generator, image: AnnotatedImage, crop: int, base_scale: float, ranges: AugmentationRanges
) -> AnnotatedImage:
    """One random ``crop`` x ``crop`` view of a picture with its boxes, colours jittered."""
    height, width = image.pixels.shape[:2]
    affine = random_affine(rng, width, height, crop, base_scale, ranges.scale)
    pixels = warp_pixels(image.pixels, affine, crop, crop)
    view = AnnotatedImage(
        jitter_colours(rng, pixels, ranges),
        warp_boxes(image.boxes_xywh, affine),
        image.class_ids,
    )
    return clip_to_canvas(view)


def jitter_colours(rng: Generator, pixels: Pixels, ranges: AugmentationRanges) -> Pixels:
    """Random brightness, contrast, saturation and hue as one 3x3 colour matrix, and maybe blur."""
    gray = np.full((3, 3), 1 / 3)
    saturation = 1 + rng.uniform(-ranges.saturation, ranges.saturation)
    angle = np.deg2rad(rng.uniform(-ranges.hue_degrees, ranges.hue_degrees))
    # Rotation about the gray axis (Rodrigues): shifts hue, keeps brightness.
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    hue = np.cos(angle) * np.eye(3) + np.sin(angle) * axis + (1 - np.cos(angle)) * gray
    contrast = 1 + rng.uniform(-ranges.contrast, ranges.contrast)
    brightness = 255 * rng.uniform(-ranges.brightness, ranges.brightness)
    matrix = contrast * hue @ (saturation * np.eye(3) + (1 - saturation) * gray)
    shift = (1 - contrast) * 128 + brightness
    floats = cv2.transform(pixels.astype(np.float32), np.column_stack([matrix, np.full(3, shift)]))
    if rng.random() < ranges.blur_probability:
        floats = cv2.GaussianBlur(floats, (0, 0), rng.uniform(0.3, 1.2))
    return np.asarray(np.clip(floats + 0.5, 0, 255), np.uint8)
