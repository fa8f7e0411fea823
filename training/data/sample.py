"""Annotated images, the common format of label readers, renderers and augmentation."""

from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]

ALL_CLASSES = -1
"""Class id of an ignored region that may contain unlabelled objects of any class."""


def _no_boxes() -> FloatArray:
    return np.zeros((0, 4), np.float32)


def _no_class_ids() -> IntArray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Boxes3D:
    """3D boxes of the objects in an image, in KITTI's camera coordinates.

    Attributes:
        depths_m: float32 (N,), distance along the optical axis.
        dimensions_m: float32 (N, 3), height, width, length.
        alphas_rad: float32 (N,), observation angle in -pi...pi (KITTI).
        is_measurable: False in scaled views, where depths and dimensions do not match the pixels.
    """

    depths_m: FloatArray
    dimensions_m: FloatArray
    alphas_rad: FloatArray
    is_measurable: bool = True


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotations.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        boxes_xywh: float32 (N, 4), left, top, width, height in pixels; the left edge of the
            left-most pixel is 0 and the right edge of the right-most one is W (COCO).
        class_ids: int64 (N,), from 0.
        keypoints: float32 (N, J, 3): x, y in the coordinates of the boxes, and COCO's visibility,
            0 for unlabelled keypoints, all NaN for objects of classes without keypoints; or the
            top, left, bottom and right point of each object, all labelled; None for data without
            either.
        boxes_3d: 3D boxes of the same objects; None for data without them.
        ignored_xywh: float32 (M, 4), regions that are excluded from the loss.
        ignored_class_ids: int64 (M,), class of each region, or :data:`ALL_CLASSES`.
    """

    pixels: Pixels
    boxes_xywh: FloatArray
    class_ids: IntArray
    keypoints: FloatArray | None = None
    boxes_3d: Boxes3D | None = None
    ignored_xywh: FloatArray = field(default_factory=_no_boxes)
    ignored_class_ids: IntArray = field(default_factory=_no_class_ids)

    def with_objects(self, kept: NDArray[np.bool_]) -> Self:
        """Return the image with the objects for which ``kept``, bool (N,), is true."""
        boxes_3d = self.boxes_3d
        if boxes_3d is not None:
            boxes_3d = replace(
                boxes_3d,
                depths_m=boxes_3d.depths_m[kept],
                dimensions_m=boxes_3d.dimensions_m[kept],
                alphas_rad=boxes_3d.alphas_rad[kept],
            )
        return replace(
            self,
            boxes_xywh=self.boxes_xywh[kept],
            class_ids=self.class_ids[kept],
            keypoints=None if self.keypoints is None else self.keypoints[kept],
            boxes_3d=boxes_3d,
        )
