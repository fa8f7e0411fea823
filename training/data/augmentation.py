"""Random views of annotated images, and the fixed view used for evaluation.

Frames: pixel centers have integer coordinates, so the left edge of an image lies at -0.5. The
fixed view maps ``dst = k (src - size/2) + dst_size/2`` for pixel centers and, like the authors,
for box edges too. Random views place boxes so that they agree with that convention.
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
"""A box of which the crop leaves less than this share is dropped: too little to recognise."""


@dataclass(frozen=True)
class AugmentationRanges:
    """How far random views may depart from the fixed one.

    Attributes:
        scale: smallest and largest enlargement relative to the fixed view.
        brightness, contrast, saturation, hue_degrees, blur_probability: of the colours.
        flip: whether half of the views are flipped.
        quarter_turns: whether views are turned by a random multiple of 90 degrees.
        center_border_px: None keeps windows inside the image as far as they fit. A number lets
            their centers lie anywhere in the image but this close to its border (128 with the
            authors of all three papers; less in images that are smaller than twice that).
        fixed_probability: share of views that are flipped at most, neither scaled nor shifted.
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
    """The view that an image becomes.

    Attributes:
        width, height: of the view in pixels.
        scale: enlargement of the fixed view.
        keypoint_pairs: keypoints that a flip exchanges, as pairs of their indices.
    """

    width: int
    height: int
    scale: float
    keypoint_pairs: Sequence[tuple[int, int]] = ()


def evaluation_affine(width: int, height: int, input_width: int, input_height: int) -> Affine:
    """The view used at test time: centered, scaled by ``input_width / max(width, height)``."""
    scale = input_width / max(width, height)
    return fixed_affine(width, height, Canvas(input_width, input_height, scale))


def fixed_affine(width: int, height: int, canvas: Canvas) -> Affine:
    """The middle of an image of this size to the middle of the canvas, as the authors have it."""
    source = (width / 2, height / 2)
    return _similarity(np.eye(2) * canvas.scale, source, (canvas.width / 2, canvas.height / 2))


def flipped(affine: Affine, width: int) -> Affine:
    """The affine with left and right exchanged in its canvas of ``width`` pixels."""
    flip = np.diag([-1.0, 1.0])
    return np.column_stack([flip @ affine[:, :2], flip @ affine[:, 2] + (width - 1, 0)])


def random_affine(
    rng: Generator, width: int, height: int, canvas: Canvas, ranges: AugmentationRanges
) -> Affine:
    """A random scale, quarter turn, flipping and position of the window onto the canvas."""
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
    """Where on a side of the image the middle of a window of this length stands, in pixels."""
    if border is None:
        # The window stays inside the image where the image is larger, and centered where not.
        half = window / 2
        return float(rng.uniform(half, side - half)) if side > 2 * half else side / 2
    while side <= 2 * border:
        border //= 2
    return float(rng.uniform(border, side - border))


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


def warp_keypoints(keypoints: FloatArray, affine: Affine) -> FloatArray:
    """Keypoints, float32 (N, J, 3), where the affine takes them; their frame is that of boxes."""
    places = np.concatenate([keypoints[..., :2], np.zeros_like(keypoints[..., :2])], axis=-1)
    warped = warp_boxes(places.reshape(-1, 4), affine).reshape(places.shape)
    return np.concatenate([warped[..., :2], keypoints[..., 2:]], axis=-1)


def clip_to_canvas(image: AnnotatedImage) -> AnnotatedImage:
    """Clip boxes to the image and drop those of which too little is left."""
    boxes, kept = _clip(image.boxes_xywh, image.pixels)
    ignored, kept_ignored = _clip(image.ignored_xywh, image.pixels)
    return replace(
        image.with_objects(kept),
        boxes_xywh=boxes[kept],
        ignored_xywh=ignored[kept_ignored],
        ignored_class_ids=image.ignored_class_ids[kept_ignored],
    )


def _clip(boxes_xywh: FloatArray, pixels: Pixels) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Boxes, float32 (N, 4), inside the image, and of which of them enough is left."""
    height, width = pixels.shape[:2]
    low = np.clip(boxes_xywh[:, :2], 0, (width, height))
    high = np.clip(boxes_xywh[:, :2] + boxes_xywh[:, 2:], 0, (width, height))
    clipped = np.concatenate([low, high - low], axis=1)
    kept = clipped[:, 2:].prod(axis=1) > _MIN_VISIBLE_FRACTION * boxes_xywh[:, 2:].prod(axis=1)
    return clipped.astype(np.float32), kept


def fixed_view(image: AnnotatedImage, canvas: Canvas) -> AnnotatedImage:
    """The view that the network is tested with."""
    height, width = image.pixels.shape[:2]
    return clip_to_canvas(_warp(image, fixed_affine(width, height, canvas), canvas))


def random_view(
    rng: Generator, image: AnnotatedImage, canvas: Canvas, ranges: AugmentationRanges
) -> AnnotatedImage:
    """One random view of an image with what is in it, colours jittered."""
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
    """Move pixels and annotations; exchanges left and right where the affine is a flip."""
    determinant = float(np.linalg.det(affine[:, :2]))
    keypoints, space = image.keypoints, image.space
    if keypoints is not None:
        keypoints = warp_keypoints(keypoints, affine)
        if determinant < 0:
            keypoints = keypoints[:, _flip_order(keypoints.shape[1], canvas.keypoint_pairs)]
    if space is not None:
        alphas = np.pi - space.alphas_rad if determinant < 0 else space.alphas_rad
        wrapped = np.remainder(alphas + np.pi, 2 * np.pi) - np.pi
        is_fixed = bool(np.isclose(np.sqrt(abs(determinant)), canvas.scale))
        space = replace(
            space,
            alphas_rad=wrapped.astype(np.float32),
            is_measurable=space.is_measurable and is_fixed,
        )
    return replace(
        image,
        pixels=warp_pixels(image.pixels, affine, canvas.width, canvas.height),
        boxes_xywh=warp_boxes(image.boxes_xywh, affine),
        keypoints=keypoints,
        space=space,
        ignored_xywh=warp_boxes(image.ignored_xywh, affine),
    )


def _flip_order(keypoints: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    order = list(range(keypoints))
    for left, right in pairs:
        order[left], order[right] = right, left
    return order


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
