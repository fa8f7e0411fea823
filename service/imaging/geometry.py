"""Coordinate systems and the transforms between them.

* Points are (x, y), x to the right and y down; boxes are (x1, y1, x2, y2).
* Integer coordinates are pixel *centers*, as in the reference implementation: there is no
  half-pixel offset between the image, the network input and the output map.
* Frames: *image* is the upright original image, *resized* is the image multiplied by a test
  scale, *input* is the network input (all three in pixels), *map* is the output map, in cells.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AffineTransform:
    """Uniform scale and translation: ``p_to = scale * p_from + (shift_x_px, shift_y_px)``."""

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
        """Return the transform with this scale that maps one center (x, y) to the other."""
        return cls(
            scale,
            to_center_px[0] - scale * from_center_px[0],
            to_center_px[1] - scale * from_center_px[1],
        )

    @property
    def is_integer_shift(self) -> bool:
        """True for a translation by whole pixels, which needs no interpolation."""
        return self.scale == 1 and self.shift_x_px % 1 == 0 and self.shift_y_px % 1 == 0

    def matrix(self) -> NDArray[np.float64]:
        """Return the (2, 3) matrix for column vectors (x, y, 1), as OpenCV takes it."""
        return np.array([[self.scale, 0, self.shift_x_px], [0, self.scale, self.shift_y_px]])

    def apply_inverse(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apply the inverse transform to float64 points (..., 2)."""
        return (points - (self.shift_x_px, self.shift_y_px)) / self.scale


@dataclass(frozen=True)
class ImageTransform:
    """Transform from an image to one network input.

    The image is resized by ``test_scale`` (sides truncated to whole pixels), then mapped by
    ``to_input`` into an input that has the colour ``padding_rgb`` elsewhere. Where ``flipped``, the
    input is flipped horizontally after that.
    """

    resized_width_px: int
    resized_height_px: int
    input_width_px: int
    input_height_px: int
    to_input: AffineTransform
    """From the resized frame to the input frame before the flip."""
    test_scale: float = 1.0
    flipped: bool = False
    padding_rgb: tuple[int, int, int] = (0, 0, 0)

    def to_image(self, points_in_input: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map float64 points (..., 2) from the input frame before the flip to the image frame.

        As in the reference implementation, this divides by the test scale itself rather than by
        the ratio of the truncated sides.
        """
        return self.to_input.apply_inverse(points_in_input) / self.test_scale

    @property
    def image_px_per_input_px(self) -> float:
        """Length of one input pixel, in pixels of the image."""
        return 1 / (self.to_input.scale * self.test_scale)
