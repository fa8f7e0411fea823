"""What a decoder makes of one image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """Axis-aligned boxes of one image, best score first.

    ``boxes_xyxy``: float64 (n, 4) in pixels of the upright original image, not clipped to it;
    ``scores``: float32 (n,) in [0, 1]; ``class_ids``: int32 (n,), indices into the class names.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class DetectionOptions:
    """What one request wants to see; ``class_ids`` of None means every class."""

    score_threshold: float
    top_k: int
    class_ids: frozenset[int] | None = None
