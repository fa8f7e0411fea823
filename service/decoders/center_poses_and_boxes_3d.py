"""2D boxes, keypoints and 3D boxes from the same center points."""

from collections.abc import Sequence

from model_package import CenterPosesAndBoxes3DDecoder
from service.decoders.center_boxes import select_boxes
from service.decoders.center_boxes_3d import CenterBoxes3D
from service.decoders.center_poses import CenterPoses
from service.decoders.types import DetectionOptions, ModelOutput, PoseAndBox3DDetections


class CenterPosesAndBoxes3D:
    """Decodes the outputs of one network input as poses and as 3D boxes.

    Output tensors: see :class:`model_package.CenterPosesAndBoxes3DDecoder`.
    """

    def __init__(self, config: CenterPosesAndBoxes3DDecoder) -> None:
        self._output_stride = config.output_stride
        self._poses = CenterPoses(config)
        self._boxes_3d = CenterBoxes3D(config)

    def decode(
        self, outputs: Sequence[ModelOutput], options: DetectionOptions
    ) -> PoseAndBox3DDetections:
        """Return the best detections of one image, which has exactly one network input."""
        rows, boxes = select_boxes(outputs, self._output_stride, options)
        return PoseAndBox3DDetections(
            **vars(boxes),
            **self._poses.keypoints(outputs, rows, boxes.class_ids),
            **self._boxes_3d.boxes_3d(outputs, rows, options),
        )
