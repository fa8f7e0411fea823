"""What a decoder makes of one image, and what it is asked for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """Axis-aligned boxes of one image, best score first.

    ``boxes_xyxy``: float64 (n, 4) in pixels of the upright original image, not clipped to it
    (the corner systems clip); ``scores``: float32 (n,) in [0, 1]; ``class_ids``: int32 (n,),
    indices into the class names.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class PoseDetections(Detections):
    """Boxes with keypoints.

    ``keypoints``: float64 (n, keypoints, 2) in pixels of the upright original image;
    ``keypoint_scores``: float32 (n, keypoints), 0 where the keypoint is regressed from the center
    because no peak of its heatmap fitted.
    """

    keypoints: NDArray[np.float64]
    keypoint_scores: NDArray[np.float32]


@dataclass(frozen=True)
class Detections3D(Detections):
    """Boxes with a 3D box, in the camera's frame: x right, y down, z forward.

    ``dimensions_hwl_m``: float64 (n, 3), height, width, length; ``locations_m``: float64 (n, 3),
    middle of the *bottom* face; ``rotations_y_rad``: float64 (n,) about the y axis, 0 when the
    object's length points along x, in [-pi, pi]; ``alphas_rad``: float64 (n,), the rotation
    relative to the line of sight, in [-3 pi / 2, 3 pi / 2] as the network gives it; ``depths_m``:
    float64 (n,), as the network gives it; ``corners``: float64 (n, 8, 2), the corners of the box
    in pixels of the upright original image, bottom face first, NaN for all eight where one is not
    in front of the camera.
    """

    dimensions_hwl_m: NDArray[np.float64]
    locations_m: NDArray[np.float64]
    rotations_y_rad: NDArray[np.float64]
    alphas_rad: NDArray[np.float64]
    depths_m: NDArray[np.float64]
    corners: NDArray[np.float64]


@dataclass(frozen=True)
class DetectionOptions:
    """What one request wants of the decoder; ``class_ids`` of None means every class.

    ``projection``: float64 (3, 4), camera matrix for pixels of the upright original image; None
    for the model's own.
    """

    score_threshold: float
    top_k: int
    class_ids: frozenset[int] | None = None
    soft_nms: bool = False
    projection: NDArray[np.float64] | None = None
