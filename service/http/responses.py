"""The fields of one detection that only some tasks have."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from service.decoders.types import Detections, Detections3D, PoseDetections

Keypoint = Annotated[
    list[float],
    Field(
        min_length=3,
        max_length=3,
        description="x, y in pixels of the upright original image, to 0.001, and the score (0 to "
        "1) of the peak in the keypoint's heatmap; 0 where the keypoint is only inferred from the box.",
        examples=[[120.25, 44.5, 0.83]],
    ),
]
_Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
_Point = Annotated[list[float], Field(min_length=2, max_length=2)]
_Corners = Annotated[list[_Point], Field(min_length=8, max_length=8)]


@dataclass(slots=True)
class Box3D:
    """A 3D box, in the camera's frame (x right, y down, z forward), as KITTI has it."""

    dimensions_hwl: Annotated[_Triple, Field(description="Height, width, length in metres.")]
    location_xyz: Annotated[_Triple, Field(description="Middle of the bottom face, in metres.")]
    rotation_y: Annotated[
        float,
        Field(description="Radians about the y axis, -pi to pi; 0 when the length points along x."),
    ]
    alpha: Annotated[
        float,
        Field(
            description="Radians; the rotation relative to the line of sight, as the network gives "
            "it: -3 pi / 2 to 3 pi / 2."
        ),
    ]
    depth: Annotated[float, Field(description="Metres, as the network gives it.")]
    corners_px: Annotated[
        _Corners | SkipJsonSchema[None],
        Field(
            description="The corners in pixels of the upright original image: bottom face, then "
            "top face, each around, so that corner i stands under corner i + 4. Absent where a "
            "corner is not in front of the camera."
        ),
    ] = None


def _nothing(found: Detections) -> Iterator[dict[str, Any]]:
    return ({} for _ in range(len(found)))


def _keypoints(found: PoseDetections) -> Iterator[dict[str, Any]]:
    scored = np.dstack([found.keypoints.round(3), found.keypoint_scores.astype(float).round(6)])
    return ({"keypoints": keypoints} for keypoints in scored.tolist())


def _boxes_3d(found: Detections3D) -> Iterator[dict[str, Any]]:
    rows = zip(
        _rounded(found.dimensions_hwl_m),
        _rounded(found.locations_m),
        _rounded(found.rotations_y_rad),
        _rounded(found.alphas_rad),
        _rounded(found.depths_m),
        found.corners.round(3),
        strict=True,
    )
    for dimensions, location, rotation_y, alpha, depth, corners in rows:
        yield {
            "box3d": Box3D(
                dimensions_hwl=dimensions,
                location_xyz=location,
                rotation_y=rotation_y,
                alpha=alpha,
                depth=depth,
                corners_px=corners.tolist() if np.isfinite(corners).all() else None,
            )
        }


def _rounded(values: NDArray[np.float64]) -> list[Any]:
    """Metres and radians to four decimals: below any sensor's accuracy."""
    rounded: list[Any] = values.round(4).tolist()
    return rounded


TASK_FIELDS: Mapping[type[Detections], Callable[[Any], Iterator[dict[str, Any]]]] = {
    Detections: _nothing,
    PoseDetections: _keypoints,
    Detections3D: _boxes_3d,
}
"""By the kind of detections: a dictionary of further fields for each detection."""
