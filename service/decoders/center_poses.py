"""2D boxes and keypoints from center points (*Objects as Points*, section 4.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import KeypointsDecoder
from service.decoders.center_boxes import concatenate, select_boxes
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
        rows, boxes = select_boxes(outputs, self._output_stride, options)
        return PoseDetections(**vars(boxes), **self.keypoints(outputs, rows, boxes.class_ids))

    def keypoints(
        self,
        outputs: Sequence[ModelOutput],
        rows: NDArray[np.int64],
        class_ids: NDArray[np.int32],
    ) -> dict[str, NDArray[Any]]:
        """Return the fields that :class:`PoseDetections` adds to boxes.

        ``rows`` (n,) are those of the selected boxes in the tensors of all ``outputs``, and
        ``class_ids`` (n,) their classes.
        """
        keypoints = np.concatenate(
            [
                output.transform.to_image(
                    output.tensors["keypoints"].astype(np.float64) * self._output_stride
                )
                for output in outputs
            ]
        )[rows]
        scores = concatenate(outputs, "keypoint_scores")[rows]
        if self._class_ids:
            has_none = ~np.isin(class_ids, self._class_ids)
            keypoints[has_none], scores[has_none] = np.nan, 0
        return {"keypoints": keypoints, "keypoint_scores": scores}
