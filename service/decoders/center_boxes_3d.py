"""3D boxes from center points (*Objects as Points*, section 4.1).

The camera frame has x to the right, y down and z forward, in metres, as in KITTI. Camera matrices
(3, 4) are those of rectified cameras: their third row is (0, 0, 1, t).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_package import Boxes3DDecoder
from service.decoders.center_boxes import select_boxes
from service.decoders.types import DetectionOptions, Detections3D, ModelOutput

# Corners x, y, z of a box as multiples of its length, height and width, relative to the center of
# the bottom face. Bottom face first; y points down.
_UNIT_CORNERS = np.array(
    [
        *((0.5, 0, 0.5), (0.5, 0, -0.5), (-0.5, 0, -0.5), (-0.5, 0, 0.5)),
        *((0.5, -1, 0.5), (0.5, -1, -0.5), (-0.5, -1, -0.5), (-0.5, -1, 0.5)),
    ]
)


class CenterBoxes3D:
    """Decodes the ``top_k`` heatmap peaks with the camera of the request or of the manifest.

    Output tensors: see :class:`model_package.Boxes3DDecoder`.

    Differs from the reference implementation, which applies the whole affine transform, including
    the translation, to the size of the 2D box as if it were a point: here the size is only scaled.
    """

    def __init__(self, config: Boxes3DDecoder) -> None:
        self._output_stride = config.output_stride
        self._projection = np.array(config.projection, np.float64).reshape(3, 4)

    def decode(self, outputs: Sequence[ModelOutput], options: DetectionOptions) -> Detections3D:
        """Return the best 3D boxes of one image, which has exactly one network input."""
        rows, boxes = select_boxes(outputs, self._output_stride, options)
        return Detections3D(**vars(boxes), **self.boxes_3d(outputs, rows, options))

    def boxes_3d(
        self, outputs: Sequence[ModelOutput], rows: NDArray[np.int64], options: DetectionOptions
    ) -> dict[str, NDArray[Any]]:
        """Return the fields that :class:`Detections3D` adds to boxes.

        ``rows`` (n,) are those of the selected boxes in the tensors of the network input.
        """
        (output,) = outputs
        peaks = {
            name: output.tensors[name][rows].astype(np.float64)
            for name in ("centers", "depths", "dimensions", "rotations")
        }
        projection = self._projection if options.projection is None else options.projection
        centers = output.transform.to_image(peaks["centers"] * self._output_stride)
        alphas = decode_alphas(peaks["rotations"])
        locations = unproject(centers, peaks["depths"], projection)
        locations[:, 1] += peaks["dimensions"][:, 0] / 2
        rotations_y = alphas_to_rotations_y(alphas, centers[:, 0], projection)
        return {
            "dimensions_hwl_m": peaks["dimensions"],
            "locations_m": locations,
            "rotations_y_rad": rotations_y,
            "alphas_rad": alphas,
            "depths_m": peaks["depths"],
            "corners": project(
                box_corners(peaks["dimensions"], locations, rotations_y), projection
            ),
        }


def decode_alphas(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return observation angles (n,) in [-3 pi / 2, 3 pi / 2], in radians.

    ``rotations`` (n, 8): two bins, centered at -pi / 2 and pi / 2, of (negative logit, positive
    logit, sine, cosine). The bin with the larger positive logit is used.
    """
    bins = rotations.reshape(-1, 2, 4)
    angles = np.arctan2(bins[..., 2], bins[..., 3]) + np.array([-np.pi / 2, np.pi / 2])
    return np.asarray(np.where(bins[:, 0, 1] > bins[:, 1, 1], angles[:, 0], angles[:, 1]))


def alphas_to_rotations_y(
    alphas: NDArray[np.float64], centers_x: NDArray[np.float64], projection: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return rotations about the y axis (n,) in [-pi, pi]: alpha plus the viewing ray's angle.

    ``centers_x`` (n,) are in pixels of the image, angles in radians.
    """
    angles = alphas + np.arctan2(centers_x - projection[0, 2], projection[0, 0])
    angles = np.where(angles > np.pi, angles - 2 * np.pi, angles)
    return np.asarray(np.where(angles < -np.pi, angles + 2 * np.pi, angles))


def unproject(
    points: NDArray[np.float64], depths: NDArray[np.float64], projection: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the points (n, 3) in the camera frame, in metres, of image points at given depths.

    ``points`` (n, 2) are in pixels of the image, ``depths`` (n,) in metres.
    """
    z = depths - projection[2, 3]
    principal, focal = projection[:2, 2], projection[(0, 1), (0, 1)]
    xy = (points * depths[:, None] - projection[:2, 3] - principal * z[:, None]) / focal
    return np.column_stack([xy, z])


def box_corners(
    dimensions_hwl: NDArray[np.float64],
    locations: NDArray[np.float64],
    rotations_y: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return corners (n, 8, 3) in the camera frame, in metres, bottom face first.

    ``dimensions_hwl`` (n, 3) in metres, ``locations`` (n, 3) of the centers of the bottom faces in
    metres, ``rotations_y`` (n,) in radians.
    """
    x, y, z = np.moveaxis(_UNIT_CORNERS * dimensions_hwl[:, None, (2, 0, 1)], 2, 0)
    cosine, sine = np.cos(rotations_y)[:, None], np.sin(rotations_y)[:, None]
    rotated = np.stack([cosine * x + sine * z, y, cosine * z - sine * x], axis=2)
    return np.asarray(rotated + locations[:, None])


def project(points: NDArray[np.float64], projection: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pixels (n, 8, 2) of points (n, 8, 3) in the camera frame, in metres.

    All 8 are NaN where one of them is not in front of the camera.
    """
    homogeneous = points @ projection[:, :3].T + projection[:, 3]
    in_front = (homogeneous[..., 2] > 0).all(axis=1, keepdims=True)
    depths = np.where(in_front, homogeneous[..., 2], np.nan)
    return np.asarray(homogeneous[..., :2] / depths[..., None])
