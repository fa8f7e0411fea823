"""Pixels to network inputs, as the authors' test code does it."""

import cv2
import numpy as np
from numpy.typing import NDArray

from service.geometry import Placement

# Pictures are prepared in parallel by a pool of threads; OpenCV's own threads would fight them.
cv2.setNumThreads(1)


def draw_input(pixels: NDArray[np.uint8], placed: Placement) -> NDArray[np.uint8]:
    """Draw uint8 RGB (h, w, 3) into a black uint8 RGB (input height, input width, 3).

    Bilinear, by OpenCV like the authors: other libraries place pixel centers elsewhere, which
    shifts every box.
    """
    size = (placed.resized_width_px, placed.resized_height_px)
    if size != (pixels.shape[1], pixels.shape[0]):
        pixels = np.asarray(cv2.resize(pixels, size), dtype=np.uint8)
    draw = _shift if placed.to_input.is_integer_shift else _warp
    canvas = draw(pixels, placed)
    return np.asarray(cv2.flip(canvas, 1), dtype=np.uint8) if placed.mirrored else canvas


def _warp(pixels: NDArray[np.uint8], placed: Placement) -> NDArray[np.uint8]:
    canvas = cv2.warpAffine(
        pixels,
        placed.to_input.matrix(),
        (placed.input_width_px, placed.input_height_px),
        flags=cv2.INTER_LINEAR,
    )
    return np.asarray(canvas, dtype=np.uint8)


def _shift(pixels: NDArray[np.uint8], placed: Placement) -> NDArray[np.uint8]:
    """Copy; the warp would give the same pixels, later."""
    canvas = np.zeros((placed.input_height_px, placed.input_width_px, 3), np.uint8)
    left, top = int(placed.to_input.shift_x_px), int(placed.to_input.shift_y_px)
    rows = slice(max(top, 0), top + pixels.shape[0])
    columns = slice(max(left, 0), left + pixels.shape[1])
    visible = canvas[rows, columns]
    # Where the picture is larger than the input, its middle is what shows.
    from_row, from_column = max(-top, 0), max(-left, 0)
    visible[...] = pixels[
        from_row : from_row + visible.shape[0], from_column : from_column + visible.shape[1]
    ]
    return canvas
