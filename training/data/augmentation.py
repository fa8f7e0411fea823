"""Data augmentation: random views of annotated images, and the fixed view for evaluation.

Coordinates: pixel centers are integers, so the left edge of an image is at -0.5. The fixed view
maps ``dst = k (src - size/2) + dst_size/2`` for pixel centers and, as in the reference
implementation, for box edges too. Boxes of random views follow the same convention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.sample import AnnotatedImage, FloatArray, Pixels

Affine = NDArray[np.float64]
"""float64 (2, 3): source pixel centers to destination pixel centers."""

_MIN_VISIBLE_FRACTION = 0.25
"""Boxes with a smaller share of their area inside the crop are dropped."""


@dataclass(frozen=True)
class AugmentationRanges:
    """Ranges of the random augmentation.

    Attributes:
        scale: smallest and largest scale relative to the fixed view.
        brightness, contrast, saturation, hue_degrees, blur_probability: colour jitter and blur.
        flip: whether half of the views are flipped horizontally.
        quarter_turns: whether views are rotated by a random multiple of 90 degrees.
        center_border_px: smallest distance of the crop's center from the image border, halved
            until it is less than half the side of the image. 128 in the reference
            implementations of all three papers. None keeps crops inside the image if they fit.
        fixed_probability: share of views that are neither scaled nor shifted, only flipped.
    """

    scale: tuple[float, float]
    brightness: float
    contrast: float
    saturation: float
    hue_degrees: float
    blur_probability: float
    flip: bool = True
    quarter_turns: bool = False
    center_border_px: int | None = None
    fixed_probability: float = 0.0


@dataclass(frozen=True)
class Canvas:
    """Size and scale of the views of an image.

    Attributes:
        width, height: size of the view in pixels.
        scale: scale of the fixed view.
        keypoint_pairs: index pairs of left and right keypoints, which a flip exchanges.
    """

    width: int
    height: int
    scale: float
    keypoint_pairs: Sequence[tuple[int, int]] = ()


def evaluation_affine(width: int, height: int, input_width: int, input_height: int) -> Affine:
    """Return the affine of test time: centered, scaled by ``input_width / max(width, height)``."""
    scale = input_width / max(width, height)
    return fixed_affine(width, height, Canvas(input_width, input_height, scale))


def fixed_affine(width: int, height: int, canvas: Canvas) -> Affine:
    """Return the affine that maps the center of an image of this size to that of the canvas."""
    source = (width / 2, height / 2)
    return _similarity(np.eye(2) * canvas.scale, source, (canvas.width / 2, canvas.height / 2))


def flipped(affine: Affine, width: int) -> Affine:
    """Return the affine followed by a horizontal flip of its canvas of ``width`` pixels."""
    flip = np.diag([-1.0, 1.0])
    return np.column_stack([flip @ affine[:, :2], flip @ affine[:, 2] + (width - 1, 0)])


def random_affine(
    rng: Generator, width: int, height: int, canvas: Canvas, ranges: AugmentationRanges
) -> Affine:
    """Return an affine with random scale, rotation, flip and crop position."""
    factor = canvas.scale * np.exp(rng.uniform(np.log(ranges.scale[0]), np.log(ranges.scale[1])))
    quarter = int(rng.integers(4)) if ranges.quarter_turns else 0
    cosine, sine = (1, 0, -1, 0)[quarter], (0, 1, 0, -1)[quarter]
    flip = rng.choice([-1.0, 1.0]) if ranges.flip else 1.0
    linear = factor * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([flip, 1.0])
    center = [
        _window_center(rng, side, window / factor, ranges.center_border_px)
        for side, window in ((width, canvas.width), (height, canvas.height))
    ]
    # A window is symmetric about (side - 1) / 2 in pixel centers, and so is an image.
    source = (center[0] - 0.5, center[1] - 0.5)
    return _similarity(linear, source, ((canvas.width - 1) / 2, (canvas.height - 1) / 2))


def _window_center(rng: Generator, side: int, window: float, border: int | None) -> float:
    """Draw the center of a window of this length on a side of the image, in pixels."""
    if border is None:
        # The window stays inside a larger image and is centered on a smaller one.
        half = window / 2
        return float(rng.uniform(half, side - half)) if side > 2 * half else side / 2
    while side <= 2 * border:
        border //= 2
    return float(rng.uniform(border, side - border))


def _similarity(
    linear: Affine, source: tuple[float, float], destination: tuple[float, float]
) -> Affine:
    """Return the affine with this linear part that maps ``source`` to ``destination``."""
    shift = np.asarray(destination) - linear @ np.asarray(source)
    return np.column_stack([linear, shift])


def warp_pixels(pixels: Pixels, affine: Affine, width: int, height: int) -> Pixels:
    """Warp uint8 (H, W, 3) bilinearly onto a black canvas of the given size."""
    warped = cv2.warpAffine(pixels, affine, (width, height), flags=cv2.INTER_LINEAR)
    return np.asarray(warped, np.uint8)


def warp_boxes(boxes_xywh: FloatArray, affine: Affine) -> FloatArray:
    """Return the axis-aligned bounds, float32 (N, 4) x, y, w, h, of warped boxes; not clipped.

    A box edge at ``x`` is half a pixel before the center of pixel ``x``. That half pixel is
    subtracted in the source and added back scaled, which is where the fixed view puts edges.
    """
    linear, shift = affine[:, :2], affine[:, 2]
    half_pixel = 0.5 * np.sqrt(abs(np.linalg.det(linear)))
    corners = np.stack([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1) - 0.5
    warped = corners @ linear.T + shift + half_pixel  # (N, 2 corners, xy)
    low, high = warped.min(axis=1), warped.max(axis=1)
    return np.concatenate([low, high - low], axis=1).astype(np.float32)


def warp_keypoints(keypoints: FloatArray, affine: Affine) -> FloatArray:
    """Warp keypoints, float32 (N, J, 3), in the coordinates of boxes."""
    boxes = np.concatenate([keypoints[..., :2], np.zeros_like(keypoints[..., :2])], axis=-1)
    warped = warp_boxes(boxes.reshape(-1, 4), affine).reshape(boxes.shape)
    return np.concatenate([warped[..., :2], keypoints[..., 2:]], axis=-1)


def clip_to_canvas(image: AnnotatedImage) -> AnnotatedImage:
    """Clip boxes to the image and drop objects of which less than a quarter is left."""
    boxes, kept = _clip(image.boxes_xywh, image.pixels)
    ignored, kept_ignored = _clip(image.ignored_xywh, image.pixels)
    return replace(
        image.with_objects(kept),
        boxes_xywh=boxes[kept],
        ignored_xywh=ignored[kept_ignored],
        ignored_class_ids=image.ignored_class_ids[kept_ignored],
    )


def _clip(boxes_xywh: FloatArray, pixels: Pixels) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the clipped boxes, float32 (N, 4), and which to keep, bool (N,)."""
    height, width = pixels.shape[:2]
    low = np.clip(boxes_xywh[:, :2], 0, (width, height))
    high = np.clip(boxes_xywh[:, :2] + boxes_xywh[:, 2:], 0, (width, height))
    clipped = np.concatenate([low, high - low], axis=1)
    kept = clipped[:, 2:].prod(axis=1) > _MIN_VISIBLE_FRACTION * boxes_xywh[:, 2:].prod(axis=1)
    return clipped.astype(np.float32), kept


def fixed_view(image: AnnotatedImage, canvas: Canvas) -> AnnotatedImage:
    """Return the view of test time."""
    height, width = image.pixels.shape[:2]
    return clip_to_canvas(_warp(image, fixed_affine(width, height, canvas), canvas))


def random_view(
    rng: Generator, image: AnnotatedImage, canvas: Canvas, ranges: AugmentationRanges
) -> AnnotatedImage:
    """Return a random view of an image and its annotations, with colour jitter."""
    height, width = image.pixels.shape[:2]
    if ranges.fixed_probability and rng.random() < ranges.fixed_probability:
        affine = fixed_affine(width, height, canvas)
        if ranges.flip and rng.random() < 0.5:
            affine = flipped(affine, canvas.width)
    else:
        affine = random_affine(rng, width, height, canvas, ranges)
    view = _warp(image, affine, canvas)
    return clip_to_canvas(replace(view, pixels=jitter_colours(rng, view.pixels, ranges)))


def _warp(image: AnnotatedImage, affine: Affine, canvas: Canvas) -> AnnotatedImage:
    """Warp pixels and annotations; a flip also exchanges left and right keypoints."""
    determinant = float(np.linalg.det(affine[:, :2]))
    keypoints, boxes_3d = image.keypoints, image.boxes_3d
    if keypoints is not None:
        keypoints = warp_keypoints(keypoints, affine)
        if determinant < 0:
            keypoints = keypoints[:, _flip_order(keypoints.shape[1], canvas.keypoint_pairs)]
    if boxes_3d is not None:
        alphas = np.pi - boxes_3d.alphas_rad if determinant < 0 else boxes_3d.alphas_rad
        wrapped = np.remainder(alphas + np.pi, 2 * np.pi) - np.pi
        is_fixed = bool(np.isclose(np.sqrt(abs(determinant)), canvas.scale))
        boxes_3d = replace(
            boxes_3d,
            alphas_rad=wrapped.astype(np.float32),
            is_measurable=boxes_3d.is_measurable and is_fixed,
        )
    return replace(
        image,
        pixels=warp_pixels(image.pixels, affine, canvas.width, canvas.height),
        boxes_xywh=warp_boxes(image.boxes_xywh, affine),
        keypoints=keypoints,
        boxes_3d=boxes_3d,
        ignored_xywh=warp_boxes(image.ignored_xywh, affine),
    )


def _flip_order(keypoints: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    order = list(range(keypoints))
    for left, right in pairs:
        order[left], order[right] = right, left
    return order


def jitter_colours(rng: Generator, pixels: Pixels, ranges: AugmentationRanges) -> Pixels:
    """Apply random brightness, contrast, saturation and hue as one colour matrix, then blur."""
    gray = np.full((3, 3), 1 / 3)
    saturation = 1 + rng.uniform(-ranges.saturation, ranges.saturation)
    angle = np.deg2rad(rng.uniform(-ranges.hue_degrees, ranges.hue_degrees))
    # Rotation about the gray axis (Rodrigues) shifts the hue and keeps the brightness.
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
