"""Boxes and keypoints from center points (*Objects as Points*, section 4.2)."""

from collections.abc import Sequence

import numpy as np

from model_package import CenterPosesDecoder
from service.decoders.center_boxes import boxes_in_image, join
from service.decoders.model_output import ModelOutput
from service.decoders.selection import choose
from service.decoders.types import DetectionOptions, PoseDetections


class CenterPoses:
    """Decodes the peaks of one image; the graph has joined keypoints and people already.

    Differs from the reference implementation: several scales end at ``top_k`` people too (theirs returns all
    of them).
    """

    def __init__(self, facts: CenterPosesDecoder) -> None:
        self._stride = facts.output_stride

    def decode(self, views: Sequence[ModelOutput], options: DetectionOptions) -> PoseDetections:
        """Decode the views of one image (see :class:`CenterPosesDecoder` for their outputs)."""
        boxes = np.concatenate([boxes_in_image(view, self._stride) for view in views])
        keypoints = np.concatenate(
            [
                view.placement.to_image(view.outputs["keypoints"].astype(np.float64) * self._stride)
                for view in views
            ]
        )
        class_ids = join(views, "class_ids")
        chosen, scores = choose(boxes, join(views, "scores"), class_ids, options)
        return PoseDetections(
            boxes[chosen],
            scores,
            class_ids[chosen],
            keypoints[chosen],
            join(views, "keypoint_scores")[chosen],
        )
