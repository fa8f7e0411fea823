"""2D boxes, keypoints and 3D boxes from the same center points."""

from collections.abc import Sequence

from model_package import CenterPosesAndBoxes3DDecoder
from service.decoders.center_boxes_3d import CenterBoxes3D
from service.decoders.center_poses import CenterPoses
from service.decoders.types import DetectionOptions, ModelOutput, PoseAndBox3DDetections


class CenterPosesAndBoxes3D:
    """Decodes the outputs of one network input as poses and as 3D boxes.

    Output tensors: see :class:`model_package.CenterPosesAndBoxes3DDecoder`. Both decoders select
    by boxes, scores and classes, so that they return the same detections.
    """

    def __init__(self, config: CenterPosesAndBoxes3DDecoder) -> None:
        self._poses = CenterPoses(config)
        self._boxes_3d = CenterBoxes3D(config)

    def decode(
        self, outputs: Sequence[ModelOutput], options: DetectionOptions
    ) -> PoseAndBox3DDetections:
        """Return the best detections of one image, which has exactly one network input."""
        poses = self._poses.decode(outputs, options)
        boxes_3d = self._boxes_3d.decode(outputs, options)
        return PoseAndBox3DDetections(**{**vars(poses), **vars(boxes_3d)})
