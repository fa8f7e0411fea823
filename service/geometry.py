"""Coordinates, stated once.

* Points are (x, y), x to the right and y down; boxes are (x1, y1, x2, y2).
* Integer coordinates are pixel *centers*, as in the authors' code: there is no half-pixel shift
  between the picture, the network input and the output map.
* Frames: *image* is the upright original picture, *input* the network's input (both in pixels),
  *map* the output map in cells of ``output_stride`` input pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AffineTransform:
    """Image to input: ``p_input = scale * p_image + (shift_x_px, shift_y_px)``."""

    scale: float
    shift_x_px: float
    shift_y_px: float

    @classmethod
    def letterbox(
        cls, image_width_px: int, image_height_px: int, input_width_px: int, input_height_px: int
    ) -> "AffineTransform":
        """Fit the longer side of the image to the *width* of the input, centers aligned.

        This is the authors' fixed-resolution test: the height of the input never enters, so a
        picture that is relatively taller than the input is cropped at top and bottom.
        """
        scale = input_width_px / max(image_width_px, image_height_px)
        return cls(
            scale,
            input_width_px / 2 - scale * image_width_px / 2,
            input_height_px / 2 - scale * image_height_px / 2,
        )

    def matrix(self) -> NDArray[np.float64]:
        """Image to input as a (2, 3) matrix for column vectors (x, y, 1)."""
        return np.array([[self.scale, 0, self.shift_x_px], [0, self.scale, self.shift_y_px]])

    def to_image(self, points_in_input: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map float64 points (..., 2) from the input to the image."""
        return (points_in_input - (self.shift_x_px, self.shift_y_px)) / self.scale
