"""2D boxes and keypoints from center points (*Objects as Points*, section 4.2)."""

from collections.abc import Sequence

import numpy as np

from model_package import KeypointsDecoder
from service.decoders.center_boxes import concatenate, decode_boxes
from service.decoders.selection import select_top_k
from service.decoders.types import DetectionOptions, ModelOutput, PoseDetections


class CenterPoses:
    """Decodes the ``top_k`` heatmap peaks that the graph returns per network input.

    Output tensors: see :class:`model_package.KeypointsDecoder`. The graph has already assigned
    keypoint heatmap peaks to objects.

    Differs from the reference implementation: with several test scales the result is also limited
    to ``top_k`` people; the reference returns all of them.
    """

    def __init__(self, config: KeypointsDecoder) -> None:
        self._output_stride = config.output_stride
        self._class_ids = config.keypoint_class_ids

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> PoseDetections:
        """Return the best poses of all network inputs of one image."""
        boxes = np.concatenate([decode_boxes(output, self._output_stride) for output in outputs])
        keypoints = np.concatenate(
            [
                output.transform.to_image(
                    output.tensors["keypoints"].astype(np.float64) * self._output_stride
                )
                for output in outputs
            ]
        )
        class_ids = concatenate(outputs, "class_ids")
        rows, scores = select_top_k(boxes, concatenate(outputs, "scores"), class_ids, options)
        keypoints, keypoint_scores = keypoints[rows], concatenate(outputs, "keypoint_scores")[rows]
        if self._class_ids:
            has_none = ~np.isin(class_ids[rows], self._class_ids)
            keypoints[has_none], keypoint_scores[has_none] = np.nan, 0
        return PoseDetections(boxes[rows], scores, class_ids[rows], keypoints, keypoint_scores)
