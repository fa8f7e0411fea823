"""The one structure that data sets, renderer and augmentation hand to each other."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture and the boxes of the objects in it.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        boxes_xywh: float32 (N, 4), left, top, width, height in pixels; the left edge of the
            left-most pixel is 0 and the right edge of the right-most one is W (COCO).
        class_ids: int64 (N,), counted from 0.
    """

    pixels: Pixels
    boxes_xywh: FloatArray
    class_ids: IntArray
