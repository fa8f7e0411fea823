"""Boxes from center points (*Objects as Points*, section 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import CenterBoxesDecoder
from service.decoders.model_output import ModelOutput
from service.decoders.selection import choose
from service.decoders.types import DetectionOptions, Detections


class CenterBoxes:
    """Decodes the peaks of one image; all work is on ``top_k`` rows per view."""

    def __init__(self, facts: CenterBoxesDecoder) -> None:
        self._stride = facts.output_stride

    def decode(self, views: Sequence[ModelOutput], options: DetectionOptions) -> Detections:
        """Decode the views of one image (see :class:`CenterBoxesDecoder` for their outputs)."""
        boxes = np.concatenate([boxes_in_image(view, self._stride) for view in views])
        class_ids = join(views, "class_ids")
        chosen, scores = choose(boxes, join(views, "scores"), class_ids, options)
        return Detections(boxes[chosen], scores, class_ids[chosen])


def boxes_in_image(view: ModelOutput, stride: int) -> NDArray[np.float64]:
    """Boxes (top_k, 4) in pixels of the image: centers -/+ half the sizes.

    Like the reference implementation, they are not clipped to the image.
    """
    centers = view.outputs["centers"].astype(np.float64) * stride
    half_sizes = view.outputs["sizes"].astype(np.float64) * (stride / 2)
    corners = np.stack([centers - half_sizes, centers + half_sizes], axis=1)
    return view.placement.to_image(corners).reshape(-1, 4)


def join(views: Sequence[ModelOutput], output: str) -> NDArray[Any]:
    """One output of all views, row after row."""
    return np.concatenate([view.outputs[output] for view in views])
