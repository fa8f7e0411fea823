"""Coordinates, stated once.

* Points are (x, y), x to the right and y down; boxes are (x1, y1, x2, y2).
* Integer coordinates are pixel *centers*, as in the reference implementation: there is no half-pixel shift
  between the image, the network input and the output map.
* Frames: *image* is the upright original image, *resized* the image after a test scale,
  *input* the network's input (all in pixels), *map* the output map in cells.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CORNER_STRIDE = 4
"""Input pixels per cell in the corner systems, which have no other; rounded up at the end."""


@dataclass(frozen=True)
class AffineTransform:
    """One frame to another: ``p_to = scale * p_from + (shift_x_px, shift_y_px)``."""

    scale: float
    shift_x_px: float
    shift_y_px: float

    @classmethod
    def centered(
        cls,
        scale: float,
        from_center_px: tuple[float, float],
        to_center_px: tuple[float, float],
    ) -> "AffineTransform":
        """Scale so that one center comes to lie on the other."""
        return cls(
            scale,
            to_center_px[0] - scale * from_center_px[0],
            to_center_px[1] - scale * from_center_px[1],
        )

    @property
    def is_integer_shift(self) -> bool:
        """Whether every pixel lands on a pixel, so that nothing is interpolated."""
        return self.scale == 1 and self.shift_x_px % 1 == 0 and self.shift_y_px % 1 == 0

    def matrix(self) -> NDArray[np.float64]:
        """The transform as a (2, 3) matrix for column vectors (x, y, 1)."""
        return np.array([[self.scale, 0, self.shift_x_px], [0, self.scale, self.shift_y_px]])

    def inverse(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map float64 points (..., 2) back."""
        return (points - (self.shift_x_px, self.shift_y_px)) / self.scale


@dataclass(frozen=True)
class ImageTransform:
    """Where an image lies in one network input.

    The image is resized by ``test_scale`` (its sides cut to whole pixels), then moved by
    ``to_input`` into a black input; ``flipped`` inputs are turned left to right after that.
    """

    resized_width_px: int
    resized_height_px: int
    input_width_px: int
    input_height_px: int
    to_input: AffineTransform
    """Resized to (unmirrored) input."""
    test_scale: float = 1.0
    flipped: bool = False

    def to_image(self, points_in_input: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map float64 points (..., 2) from the unmirrored input to the image.

        Like the authors, divides by the test scale itself, not by the ratio of the whole-pixel
        sides.
        """
        return self.to_input.inverse(points_in_input) / self.test_scale

    @property
    def image_px_per_input_px(self) -> float:
        """How long one input pixel is in the image."""
        return 1 / (self.to_input.scale * self.test_scale)
