"""Decoded pixels to network inputs, as the reference implementation makes them."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import ImageTransform
from service.imaging.image_decoding import DecodedImage, Reduction

# Images are prepared in parallel by a thread pool; OpenCV's own threads would compete with it.
cv2.setNumThreads(1)


MIN_PX_PER_INPUT_PX = 1.25
"""Decoded pixels per pixel of the network input, at least, when a JPEG is decoded at reduced
size: as many as a COCO photo has in the reference implementation's test, and the lowest ratio at
which no loss of accuracy was measured (docs/measurements/image_decoding.md)."""

_REDUCTIONS = (8, 4, 2)
_MAX_RGBA_PX_PER_INPUT_PX = 8
"""Pixels of an image per pixel of the network input up to which it is converted to RGBA. For larger
images the conversion takes as long as it saves, and the copy would take much memory."""


def choose_reduction(transforms: Sequence[ImageTransform]) -> int:
    """Return the reduction (1, 2, 4 or 8) at which a JPEG has enough pixels for all inputs."""
    min_ratio = min(transform.image_px_per_input_px for transform in transforms)
    sufficient = (one for one in _REDUCTIONS if min_ratio / one >= MIN_PX_PER_INPUT_PX)
    return next(sufficient, 1)


def warp_to_input(image: DecodedImage, transform: ImageTransform) -> NDArray[np.uint8]:
    """Return the network input, uint8 RGB (input height, input width, 3), padded around the image.

    Bilinear interpolation by OpenCV, as in the reference implementation: other libraries place
    pixel centers differently, which shifts all boxes.
    """
    if image.reduction is None:
        canvas = _resize_and_warp(image.pixels, transform)
    else:
        canvas = _warp_reduced(image.pixels, image.reduction, transform)
    return np.asarray(cv2.flip(canvas, 1), dtype=np.uint8) if transform.flipped else canvas


def _resize_and_warp(pixels: NDArray[np.uint8], transform: ImageTransform) -> NDArray[np.uint8]:
    """Resize by the test scale, then warp: the two steps of the reference implementation."""
    size = (transform.resized_width_px, transform.resized_height_px)
    if size != (pixels.shape[1], pixels.shape[0]):
        pixels = np.asarray(cv2.resize(pixels, size), dtype=np.uint8)
    if transform.to_input.is_integer_shift:
        return _translate(pixels, transform)
    return _warp(pixels, transform.to_input.matrix(), transform)


def _warp_reduced(
    pixels: NDArray[np.uint8], reduction: Reduction, transform: ImageTransform
) -> NDArray[np.uint8]:
    """Resize and warp in one step, sampling where :func:`_resize_and_warp` would."""
    to_full, to_input = reduction.to_full, transform.to_input
    # cv2.resize aligns the outer edges of both images, not the centers of their outer pixels.
    resize_factors = np.array(
        [
            transform.resized_width_px / reduction.full_width_px,
            transform.resized_height_px / reduction.full_height_px,
        ]
    )
    first_center = np.array([to_full.shift_x_px, to_full.shift_y_px])
    first_center_resized = resize_factors * (first_center + 0.5) - 0.5
    shift = to_input.scale * first_center_resized + (to_input.shift_x_px, to_input.shift_y_px)
    scale = np.diag(to_input.scale * resize_factors * to_full.scale)
    return _warp(pixels, np.column_stack([scale, shift]), transform)


def _warp(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], transform: ImageTransform
) -> NDArray[np.uint8]:
    size = (transform.input_width_px, transform.input_height_px)
    if pixels.shape[0] * pixels.shape[1] > _MAX_RGBA_PX_PER_INPUT_PX * size[0] * size[1]:
        canvas = cv2.warpAffine(pixels, matrix, size, borderValue=transform.padding_rgb)
        return np.asarray(canvas, dtype=np.uint8)
    # OpenCV warps four channels in less than half the time of three, with the same result.
    rgba = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    canvas = cv2.warpAffine(rgba, matrix, size, borderValue=transform.padding_rgb)
    return np.asarray(cv2.cvtColor(canvas, cv2.COLOR_RGBA2RGB), dtype=np.uint8)


def _translate(pixels: NDArray[np.uint8], transform: ImageTransform) -> NDArray[np.uint8]:
    """Copy the pixels to the input; the same result as :func:`_warp`, but faster."""
    canvas = np.zeros((transform.input_height_px, transform.input_width_px, 3), np.uint8)
    if any(transform.padding_rgb):
        canvas[:] = transform.padding_rgb
    left, top = int(transform.to_input.shift_x_px), int(transform.to_input.shift_y_px)
    rows = slice(max(top, 0), top + pixels.shape[0])
    columns = slice(max(left, 0), left + pixels.shape[1])
    visible = canvas[rows, columns]
    # Where the image is larger than the input, its center part is visible.
    from_row, from_column = max(-top, 0), max(-left, 0)
    visible[...] = pixels[
        from_row : from_row + visible.shape[0], from_column : from_column + visible.shape[1]
    ]
    return canvas
