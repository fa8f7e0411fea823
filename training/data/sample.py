"""The one structure that data sets, renderers and augmentation hand to each other."""

from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]

ALL_CLASSES = -1
"""Class of an ignored region in which objects of every class may be unlabelled."""


def _no_boxes() -> FloatArray:
    return np.zeros((0, 4), np.float32)


def _no_class_ids() -> IntArray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Space:
    """Where the objects of an image stand in front of its camera.

    Attributes:
        depths_m: float32 (N,), along the optical axis.
        dimensions_m: float32 (N, 3), height, width, length.
        alphas_rad: float32 (N,), observation angle in -pi...pi (KITTI).
        is_measurable: False in views that are enlarged or shrunk, where depths no longer fit.
    """

    depths_m: FloatArray
    dimensions_m: FloatArray
    alphas_rad: FloatArray
    is_measurable: bool = True


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the objects in it.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        boxes_xywh: float32 (N, 4), left, top, width, height in pixels; the left edge of the
            left-most pixel is 0 and the right edge of the right-most one is W (COCO).
        class_ids: int64 (N,), counted from 0.
        keypoints: float32 (N, J, 3), x, y in the frame of the boxes, and a visibility, 0 where the
            keypoint is not labelled (COCO); None for data without keypoints.
        space: the same objects in space; None for data without depth.
        ignored_xywh: float32 (M, 4), regions in which nothing is to be learned.
        ignored_class_ids: int64 (M,), of which class, or :data:`ALL_CLASSES`.
    """

    pixels: Pixels
    boxes_xywh: FloatArray
    class_ids: IntArray
    keypoints: FloatArray | None = None
    space: Space | None = None
    ignored_xywh: FloatArray = field(default_factory=_no_boxes)
    ignored_class_ids: IntArray = field(default_factory=_no_class_ids)

    def with_objects(self, kept: NDArray[np.bool_]) -> Self:
        """The same image with those objects only for which ``kept``, bool (N,), is true."""
        space = self.space
        if space is not None:
            space = replace(
                space,
                depths_m=space.depths_m[kept],
                dimensions_m=space.dimensions_m[kept],
                alphas_rad=space.alphas_rad[kept],
            )
        return replace(
            self,
            boxes_xywh=self.boxes_xywh[kept],
            class_ids=self.class_ids[kept],
            keypoints=None if self.keypoints is None else self.keypoints[kept],
            space=space,
        )
