"""Pixels to network inputs, as the upstream test code does it."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import ImageTransform
from service.imaging.image_decoding import DecodedImage, Reduction

# Images are prepared in parallel by a pool of threads; OpenCV's own threads would fight them.
cv2.setNumThreads(1)


MIN_PX_PER_INPUT_PX = 1.25
"""A reduced image keeps at least this many pixels per pixel of the network input: as many as a
photo of COCO has in the upstream test, and the fewest at which accuracy was measured not to
fall (docs/measurements/image_decoding.md)."""

_REDUCTIONS = (8, 4, 2)


def choose_reduction(placements: Sequence[ImageTransform]) -> int:
    """How much smaller (1, 2, 4 or 8 times) a JPEG may be decoded for the finest of its inputs."""
    finest = min(placed.image_px_per_input_px for placed in placements)
    enough = (step for step in _REDUCTIONS if finest / step >= MIN_PX_PER_INPUT_PX)
    return next(enough, 1)


def draw_input(image: DecodedImage, placed: ImageTransform) -> NDArray[np.uint8]:
    """Draw an image into a black uint8 RGB (input height, input width, 3).

    Bilinear, by OpenCV like the authors: other libraries place pixel centers elsewhere, which
    shifts every box.
    """
    if image.reduction is None:
        canvas = _draw(image.pixels, placed)
    else:
        canvas = _draw_reduced(image.pixels, image.reduction, placed)
    return np.asarray(cv2.flip(canvas, 1), dtype=np.uint8) if placed.flipped else canvas


def _draw(pixels: NDArray[np.uint8], placed: ImageTransform) -> NDArray[np.uint8]:
    """Resize, then move: the two steps of the authors."""
    size = (placed.resized_width_px, placed.resized_height_px)
    if size != (pixels.shape[1], pixels.shape[0]):
        pixels = np.asarray(cv2.resize(pixels, size), dtype=np.uint8)
    if placed.to_input.is_integer_shift:
        return _shift(pixels, placed)
    return _warp(pixels, placed.to_input.matrix(), placed)


def _draw_reduced(
    pixels: NDArray[np.uint8], reduction: Reduction, placed: ImageTransform
) -> NDArray[np.uint8]:
    """Both steps in one: each pixel of the input is sampled where :func:`_draw` would."""
    to_full, to_input = reduction.to_full, placed.to_input
    # OpenCV's resize makes the outer edges of both sizes meet, not the outer centers.
    stretch = np.array(
        [
            placed.resized_width_px / reduction.full_width_px,
            placed.resized_height_px / reduction.full_height_px,
        ]
    )
    first_center = np.array([to_full.shift_x_px, to_full.shift_y_px])
    first_center_resized = stretch * (first_center + 0.5) - 0.5
    shift = to_input.scale * first_center_resized + (to_input.shift_x_px, to_input.shift_y_px)
    scale = np.diag(to_input.scale * stretch * to_full.scale)
    return _warp(pixels, np.column_stack([scale, shift]), placed)


def _warp(
    pixels: NDArray[np.uint8], to_input: NDArray[np.float64], placed: ImageTransform
) -> NDArray[np.uint8]:
    canvas = cv2.warpAffine(
        pixels,
        to_input,
        (placed.input_width_px, placed.input_height_px),
        flags=cv2.INTER_LINEAR,
    )
    return np.asarray(canvas, dtype=np.uint8)


def _shift(pixels: NDArray[np.uint8], placed: ImageTransform) -> NDArray[np.uint8]:
    """Copy; the warp would give the same pixels, later."""
    canvas = np.zeros((placed.input_height_px, placed.input_width_px, 3), np.uint8)
    left, top = int(placed.to_input.shift_x_px), int(placed.to_input.shift_y_px)
    rows = slice(max(top, 0), top + pixels.shape[0])
    columns = slice(max(left, 0), left + pixels.shape[1])
    visible = canvas[rows, columns]
    # Where the image is larger than the input, its middle is what shows.
    from_row, from_column = max(-top, 0), max(-left, 0)
    visible[...] = pixels[
        from_row : from_row + visible.shape[0], from_column : from_column + visible.shape[1]
    ]
    return canvas
