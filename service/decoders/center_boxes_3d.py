"""3D boxes from center points (*Objects as Points*, section 4.1)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_package import CenterBoxes3DDecoder
from service.decoders.center_boxes import boxes_in_image
from service.decoders.model_output import ModelOutput
from service.decoders.selection import choose
from service.decoders.types import DetectionOptions, Detections3D

# A box's corners as multiples of its length, height and width: x, y, z. Bottom face first, each
# face around; y points down and the location is the middle of the bottom face.
_CORNERS = np.array(
    [
        *((0.5, 0, 0.5), (0.5, 0, -0.5), (-0.5, 0, -0.5), (-0.5, 0, 0.5)),
        *((0.5, -1, 0.5), (0.5, -1, -0.5), (-0.5, -1, -0.5), (-0.5, -1, 0.5)),
    ]
)


class CenterBoxes3D:
    """Decodes the peaks of one image with the request's camera or the manifest's.

    Differs from the reference implementation, which sends the size of the 2D box through the whole affine
    transform, translation included, as if it were a point: here it is only scaled.
    """

    def __init__(self, facts: CenterBoxes3DDecoder) -> None:
        self._stride = facts.output_stride
        self._projection = np.array(facts.projection, np.float64).reshape(3, 4)

    def decode(self, views: Sequence[ModelOutput], options: DetectionOptions) -> Detections3D:
        """Decode the one view of an image (see :class:`CenterBoxes3DDecoder` for its outputs)."""
        (view,) = views
        boxes = boxes_in_image(view, self._stride)
        class_ids = view.outputs["class_ids"]
        chosen, scores = choose(boxes, view.outputs["scores"], class_ids, options)
        read = {
            name: view.outputs[name][chosen].astype(np.float64)
            for name in ("centers", "depths", "dimensions", "rotations")
        }
        projection = self._projection if options.projection is None else options.projection
        centers = view.placement.to_image(read["centers"] * self._stride)
        alphas = observation_angles(read["rotations"])
        locations = unproject(centers, read["depths"], projection)
        locations[:, 1] += read["dimensions"][:, 0] / 2
        rotations_y = rotation_from_observation(alphas, centers[:, 0], projection)
        return Detections3D(
            boxes[chosen],
            scores,
            class_ids[chosen],
            read["dimensions"],
            locations,
            rotations_y,
            alphas,
            read["depths"],
            project(box_corners(read["dimensions"], locations, rotations_y), projection),
        )


def observation_angles(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles (n,) in [-3 pi / 2, 3 pi / 2] from two bins of (negative, positive, sine, cosine).

    The bin with the larger raw positive value says it, around -pi / 2 or around pi / 2.
    """
    bins = rotations.reshape(-1, 2, 4)
    angles = np.arctan2(bins[..., 2], bins[..., 3]) + np.array([-np.pi / 2, np.pi / 2])
    return np.asarray(np.where(bins[:, 0, 1] > bins[:, 1, 1], angles[:, 0], angles[:, 1]))


def unproject(
    points: NDArray[np.float64], depths: NDArray[np.float64], projection: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Points (n, 2) of the image at ``depths`` (n,) to metres (n, 3) in the camera's frame.

    ``projection`` (3, 4) has the third row (0, 0, 1, t), as rectified cameras do.
    """
    z = depths - projection[2, 3]
    principal, focal = projection[:2, 2], projection[(0, 1), (0, 1)]
    across = (points * depths[:, None] - projection[:2, 3] - principal * z[:, None]) / focal
    return np.column_stack([across, z])


def rotation_from_observation(
    alphas: NDArray[np.float64], centers_x: NDArray[np.float64], projection: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rotations about y (n,) in [-pi, pi]: the angle seen plus that of the line of sight."""
    angles = alphas + np.arctan2(centers_x - projection[0, 2], projection[0, 0])
    angles = np.where(angles > np.pi, angles - 2 * np.pi, angles)
    return np.asarray(np.where(angles < -np.pi, angles + 2 * np.pi, angles))


def box_corners(
    dimensions_hwl: NDArray[np.float64],
    locations: NDArray[np.float64],
    rotations_y: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Corners (n, 8, 3) in metres in the camera's frame."""
    x, y, z = np.moveaxis(_CORNERS * dimensions_hwl[:, None, (2, 0, 1)], 2, 0)
    cosine, sine = np.cos(rotations_y)[:, None], np.sin(rotations_y)[:, None]
    turned = np.stack([cosine * x + sine * z, y, cosine * z - sine * x], axis=2)
    return np.asarray(turned + locations[:, None])


def project(points: NDArray[np.float64], projection: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 8, 3) to pixels (n, 8, 2) of the image; NaN where one of the 8 is not in front."""
    in_image = points @ projection[:, :3].T + projection[:, 3]
    in_front = (in_image[..., 2] > 0).all(axis=1, keepdims=True)
    depths = np.where(in_front, in_image[..., 2], np.nan)
    return np.asarray(in_image[..., :2] / depths[..., None])
