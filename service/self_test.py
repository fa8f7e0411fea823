"""Self-test: run a synthetic image at intervals to detect an engine that returns wrong outputs.

Scores are compared after sorting: near ties may change their order between backends and
precisions, while sorted scores hardly change.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import InputSpec
from service.engines import Engine

TOLERANCE = 0.02
"""Largest accepted difference of a score: twice what fp16 may change it by. The faults to detect
change scores by far more."""

_SEED = 7
_SHAPE_COUNT = 40


class SelfTest:
    """Self-test image of one model, and the scores that a reference engine gives it."""

    def __init__(self, spec: InputSpec, reference: Engine) -> None:
        self.pixels = draw_test_image(spec.height_px, spec.width_px)
        self._scores = _sorted_scores(reference.run(self.pixels[np.newaxis]), 0)

    def error_of(self, outputs: Mapping[str, NDArray[Any]], row: int = 0) -> str | None:
        """Compare one row of a batch's outputs for the image with the reference.

        Returns a description of the error, or None if the scores agree within
        :data:`TOLERANCE`.
        """
        scores = _sorted_scores(outputs, row)
        if not np.isfinite(scores).all():
            return "a score of the self-test image is not a finite number"
        max_error = float(np.abs(scores - self._scores).max())
        if max_error > TOLERANCE:
            return (
                f"a score of the self-test image differs by {max_error:.3g} from its reference; "
                f"at most {TOLERANCE} is accepted"
            )
        return None


def _sorted_scores(outputs: Mapping[str, NDArray[Any]], row: int) -> NDArray[np.float64]:
    return np.sort(outputs["scores"][row].astype(np.float64))


def draw_test_image(height_px: int, width_px: int) -> NDArray[np.uint8]:
    """Draw discs on a colour gradient, uint8 RGB (height, width, 3), identical on every run."""
    random = np.random.default_rng(_SEED)
    rows, columns = np.mgrid[0:height_px, 0:width_px].astype(np.float32)
    image = np.stack([rows / height_px, columns / width_px, 1 - rows / height_px], 2) * 200
    for _ in range(_SHAPE_COUNT):
        y, x = random.uniform(0, height_px), random.uniform(0, width_px)
        radius = random.uniform(0.02, 0.1) * min(height_px, width_px)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image[inside] = random.uniform(0, 255, 3)
    return image.astype(np.uint8)
