"""A known image, run now and then: an engine that goes blind is found out.

Scores are compared in their order, best first: near ties may change places between backends and
precisions, sorted scores hardly move.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import InputSpec
from service.engines import Engine

TOLERANCE = 0.02
"""Twice what half precision may change a score by; what this is to find is far beyond it."""

_SEED = 7
_SHAPES = 40


class SelfTest:
    """The image and what ``reference`` finds in it."""

    def __init__(self, spec: InputSpec, reference: Engine) -> None:
        self.pixels = draw_test_image(spec.height_px, spec.width_px)
        self._scores = _sorted_scores(reference.run(self.pixels[np.newaxis]), 0)

    def error_of(self, outputs: Mapping[str, NDArray[Any]], row: int = 0) -> str | None:
        """Say how a row of outputs for the image is wrong; None when it is as it should be."""
        scores = _sorted_scores(outputs, row)
        if not np.isfinite(scores).all():
            return "a score of the known image is not a number"
        worst = float(np.abs(scores - self._scores).max())
        if worst > TOLERANCE:
            return (
                f"a score of the known image differs by {worst:.3g} from its reference; "
                f"at most {TOLERANCE} is accepted"
            )
        return None


def _sorted_scores(outputs: Mapping[str, NDArray[Any]], row: int) -> NDArray[np.float64]:
    return np.sort(outputs["scores"][row].astype(np.float64))


def draw_test_image(height_px: int, width_px: int) -> NDArray[np.uint8]:
    """Draw shapes on a slope, uint8 RGB (height, width, 3): the same for everybody."""
    random = np.random.default_rng(_SEED)
    rows, columns = np.mgrid[0:height_px, 0:width_px].astype(np.float32)
    image = np.stack([rows / height_px, columns / width_px, 1 - rows / height_px], 2) * 200
    for _ in range(_SHAPES):
        y, x = random.uniform(0, height_px), random.uniform(0, width_px)
        radius = random.uniform(0.02, 0.1) * min(height_px, width_px)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image[inside] = random.uniform(0, 255, 3)
    return image.astype(np.uint8)
