"""Boxes from extreme points and centers (*ExtremeNet*, Zhou, Zhuo and Kraehenbuehl 2019)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labels.extreme_points import boxes_around, group_extreme_points
from model_package import ExtremePointsDecoder
from service.decoders.selection import select_top_k
from service.decoders.types import DetectionOptions, ExtremePointDetections, ModelOutput
from service.imaging.geometry import ImageTransform


class ExtremePoints:
    """Groups extreme points by the centers between them, and merges the groups of all inputs.

    Output tensors: see :class:`model_package.ExtremePointsDecoder`. As in the reference
    implementation, an image and its flipped copy are grouped apart, and soft-NMS always merges
    their boxes.

    Differs from the reference implementation as :mod:`service.decoders.soft_nms` describes, never
    returns more than ``top_k`` boxes, and flips the extreme points of a flipped image back too.
    Without a flipped copy, the reference implementation takes the second half of the groups for
    those of one; here they are left as they are.
    """

    def __init__(self, config: ExtremePointsDecoder) -> None:
        self._output_stride = config.output_stride

    def decode(
        self, outputs: Sequence[ModelOutput], options: DetectionOptions
    ) -> ExtremePointDetections:
        """Return the best boxes of all network inputs of one image."""
        groups = [group_extreme_points(output.tensors) for output in outputs]
        points = np.concatenate(
            [
                _to_image(group["points"], output.transform, self._output_stride)
                for group, output in zip(groups, outputs, strict=True)
            ]
        )
        scores, class_ids = (
            np.concatenate([group[name] for group in groups]) for name in ("scores", "class_ids")
        )
        boxes = boxes_around(points).astype(np.float64)
        rows, kept_scores = select_top_k(boxes, scores, class_ids, options)
        return ExtremePointDetections(boxes[rows], kept_scores, class_ids[rows], points[rows])


def _to_image(
    cells: NDArray[np.float32], transform: ImageTransform, output_stride: int
) -> NDArray[np.float64]:
    """Map top, left, bottom and right points (n, 4, 2) from cells to pixels of the image."""
    points = cells.astype(np.float64)
    if transform.flipped:
        # About the width of the map rather than its last cell, as in the reference implementation.
        points[..., 0] = transform.input_width_px / output_stride - points[..., 0]
        points = points[:, [0, 3, 2, 1]]
    return transform.to_image(points * output_stride)
