"""Inputs, options and results of the decoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import ImageTransform


@dataclass(frozen=True)
class ModelOutput:
    """Output tensors of one network input, and the transform that made that input.

    ``tensors``: arrays by output name, without the batch axis, with the dtypes and shapes of
    ``outputs()`` of the manifest's decoder; ``transform``: from the image to the network input.
    """

    tensors: Mapping[str, NDArray[Any]]
    transform: ImageTransform


@dataclass(frozen=True)
class Detections:
    """Axis-aligned boxes of one image, best score first.

    ``boxes_xyxy``: float64 (n, 4) in pixels of the upright original image, clipped to the image
    by the corner decoders only; ``scores``: float32 (n,) in [0, 1]; ``class_ids``: int32
    (n,), indices into the manifest's class names.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class PoseDetections(Detections):
    """Boxes with keypoints.

    ``keypoints``: float64 (n, keypoints, 2) in pixels of the upright original image, NaN for
    objects of classes without keypoints;
    ``keypoint_scores``: float32 (n, keypoints), 0 where no heatmap peak matched and the keypoint
    is the one regressed from the center.
    """

    keypoints: NDArray[np.float64]
    keypoint_scores: NDArray[np.float32]


@dataclass(frozen=True)
class ExtremePointDetections(Detections):
    """Boxes with extreme points, which give an approximate mask.

    ``points``: float64 (n, 4, 2), the top, left, bottom and right point of each object in pixels of
    the upright original image. Each lies on its side of the box.
    """

    points: NDArray[np.float64]


@dataclass(frozen=True)
class Detections3D(Detections):
    """Boxes with 3D boxes in the camera frame: x right, y down, z forward, as in KITTI.

    ``dimensions_hwl_m``: float64 (n, 3), height, width and length in metres; ``locations_m``:
    float64 (n, 3), center of the *bottom* face in metres; ``rotations_y_rad``: float64 (n,) in
    [-pi, pi], rotation about the y axis, 0 when the object's length is along x; ``alphas_rad``:
    float64 (n,), observation angle, in [-3 pi / 2, 3 pi / 2] as the network predicts it;
    ``depths_m``: float64 (n,) in metres, as the network predicts it; ``corners``: float64
    (n, 8, 2), corners of the 3D box in pixels of the upright original image, bottom face first,
    NaN for all eight unless each of them is in front of the camera.
    """

    dimensions_hwl_m: NDArray[np.float64]
    locations_m: NDArray[np.float64]
    rotations_y_rad: NDArray[np.float64]
    alphas_rad: NDArray[np.float64]
    depths_m: NDArray[np.float64]
    corners: NDArray[np.float64]


@dataclass(frozen=True)
class PoseAndBox3DDetections(Detections3D, PoseDetections):
    """Boxes with keypoints and 3D boxes."""


@dataclass(frozen=True)
class DetectionOptions:
    """Decoding options of one request.

    ``score_threshold``: lowest score that is returned; ``top_k``: maximum number of detections;
    ``class_ids``: classes to return, None for all; ``soft_nms``: apply soft-NMS (the corner
    and the extreme point decoders always do); ``projection``: float64 (3, 4), camera matrix for
    pixels of the upright original image, None for the manifest's.
    """

    score_threshold: float
    top_k: int
    class_ids: frozenset[int] | None = None
    soft_nms: bool = False
    projection: NDArray[np.float64] | None = None
