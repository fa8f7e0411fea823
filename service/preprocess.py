"""Pixels to network input, as the authors' default test does it (fixed resolution)."""

import cv2
import numpy as np
from numpy.typing import NDArray

from service.geometry import AffineTransform

# Pictures are prepared in parallel by a pool of threads; OpenCV's own threads would fight them.
cv2.setNumThreads(1)


def letterbox(
    pixels: NDArray[np.uint8], input_width_px: int, input_height_px: int
) -> tuple[NDArray[np.uint8], AffineTransform]:
    """Warp uint8 RGB (h, w, 3) to uint8 RGB (input height, input width, 3).

    Bilinear, black outside, by OpenCV like the authors: other libraries place pixel centers
    elsewhere, which shifts every box. Returns the canvas and the image-to-input transform.
    """
    height_px, width_px = pixels.shape[:2]
    transform = AffineTransform.letterbox(width_px, height_px, input_width_px, input_height_px)
    canvas = cv2.warpAffine(
        pixels, transform.matrix(), (input_width_px, input_height_px), flags=cv2.INTER_LINEAR
    )
    return np.asarray(canvas, dtype=np.uint8), transform
