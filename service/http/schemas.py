"""Schemas of the responses; FastAPI generates the OpenAPI document from them.

Responses of the detection endpoints are dataclasses: the values are computed here and
need no validation, and pydantic serializes them faster than models.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from model_package import ModelManifest

Box = Annotated[
    list[float],
    Field(
        min_length=4,
        max_length=4,
        description="x1, y1, x2, y2 in pixels of the upright original image (EXIF orientation "
        "applied), to 0.001; integer coordinates are pixel centers; not clipped to the image.",
        examples=[[101.5, 20.25, 180.75, 97.0]],
    ),
]
_UprightPixels = Annotated[
    int, Field(description="Pixels, after the EXIF orientation was applied.")
]

Keypoint = Annotated[
    list[float],
    Field(
        min_length=3,
        max_length=3,
        description="x, y in pixels of the upright original image, to 0.001, and the score (0 to "
        "1) of the peak in the keypoint's heatmap; 0 if it is regressed from the center only.",
        examples=[[120.25, 44.5, 0.83]],
    ),
]
_Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
_Point = Annotated[list[float], Field(min_length=2, max_length=2)]
_Corners = Annotated[list[_Point], Field(min_length=8, max_length=8)]
_ExtremePoints = Annotated[list[_Point], Field(min_length=4, max_length=4)]


@dataclass(slots=True)
class Box3D:
    """A 3D box in the camera frame (x right, y down, z forward), in KITTI's conventions."""

    dimensions_hwl: Annotated[_Triple, Field(description="Height, width, length in metres.")]
    location_xyz: Annotated[_Triple, Field(description="Center of the bottom face, in metres.")]
    rotation_y: Annotated[
        float,
        Field(description="Radians about the y axis, -pi to pi; 0 when the length points along x."),
    ]
    alpha: Annotated[
        float,
        Field(
            description="Observation angle in radians, as predicted by the network: -3 pi / 2 to "
            "3 pi / 2."
        ),
    ]
    depth: Annotated[float, Field(description="Metres, as predicted by the network.")]
    corners_px: Annotated[
        _Corners | SkipJsonSchema[None],
        Field(
            description="Corners in pixels of the upright original image: bottom face, then top "
            "face; corner i is below corner i + 4. Absent if a corner is behind the camera."
        ),
    ] = None


@dataclass(slots=True)
class ModelReference:
    """The model that made the prediction."""

    name: str
    version: str


@dataclass(slots=True)
class ImageInfo:
    """The image after its EXIF orientation was applied."""

    width: _UprightPixels
    height: _UprightPixels
    orientation_applied: Annotated[
        bool, Field(description="Whether the EXIF orientation rotated or flipped the image.")
    ]


@dataclass(slots=True)
class Detection:
    """One detected object; fields of other tasks are absent, never null."""

    class_id: Annotated[int, Field(description="Index into the model's classes.")]
    class_name: str
    score: Annotated[float, Field(description="0 to 1.")]
    bbox: Box
    keypoints: Annotated[
        list[Keypoint] | SkipJsonSchema[None],
        Field(
            description="Models with keypoints: in the order of the model's `keypoints`, see GET "
            "/models/{name}. Absent for classes without keypoints."
        ),
    ] = None
    box3d: Annotated[Box3D | SkipJsonSchema[None], Field(description="Models with 3D boxes.")] = (
        None
    )
    extreme_points: Annotated[
        _ExtremePoints | SkipJsonSchema[None],
        Field(
            description="Extreme point models: the top, left, bottom and right point of the "
            "object, x, y in pixels of the upright original image, to 0.001."
        ),
    ] = None
    octagon: Annotated[
        _Corners | SkipJsonSchema[None],
        Field(
            description="Extreme point models: approximate mask, a polygon in pixels of the "
            "upright original image, clockwise from the left end of its top edge."
        ),
    ] = None


@dataclass(slots=True)
class DetectResponse:
    """The detections of one image, best score first."""

    model: ModelReference
    image: ImageInfo
    detections: list[Detection]
    timing_ms: Annotated[
        dict[str, float],
        Field(
            description="Milliseconds per stage: decode_queue, prepare (decode, resize), queue, "
            "infer, postprocess."
        ),
    ]
    request_id: str


class ModelOptions(BaseModel):
    """The request options of a model; lists hold the accepted values, the default first."""

    flip: list[bool]
    keep_resolution: list[bool]
    soft_nms: list[bool] = Field(description="With several scales, soft-NMS is the default.")
    max_scales: int = Field(description="Maximum number of scales; 1: only the scale 1.")
    camera: bool = Field(description="Whether fx, fy, cx and cy, or projection, are accepted.")


class ModelSummary(BaseModel):
    """A loaded model."""

    name: str
    version: str
    versions: list[str] = Field(
        description="The versions that are loaded, newest first. Requests that name none use the "
        "newest."
    )
    description: str
    task: str = Field(description="The kind of the decoder, such as center_boxes.")
    classes: tuple[str, ...]
    input_width: int
    input_height: int
    top_k: int
    score_threshold: float
    options: ModelOptions
    engine: str
    default: bool


class ModelDetails(ModelSummary):
    """A loaded model with its whole manifest."""

    manifest: ModelManifest


class PoseModelDetails(ModelDetails):
    """A loaded pose model with its whole manifest."""

    keypoints: tuple[str, ...] = Field(description="Names, in the order of `keypoints`.")
    skeleton: tuple[tuple[int, int], ...] = Field(
        description="Pairs of indices into `keypoints` that are connected."
    )


class FailedModel(BaseModel):
    """A package that could not be loaded.

    If no other package of the model could be loaded, requests for it get 503.
    """

    name: str = Field(
        description="The name of the model, or of its directory if that cannot be read."
    )
    version: str = Field(description="Empty if it cannot be read.")
    reason: str
    default: bool = Field(description="Whether it is the default model.")


class ModelList(BaseModel):
    """Every loaded model, and the packages that could not be loaded."""

    models: list[ModelSummary]
    failed: list[FailedModel]


class Health(BaseModel):
    """The state of the service."""

    status: str


class Readiness(Health):
    """The state of the service, and the packages that could not be loaded."""

    failed: list[FailedModel]
    loading: str | None = Field(
        description="The current step, while a package is being loaded beside those served."
    )


@dataclass(slots=True)
class Problem:
    """An error (RFC 9457) with extension members."""

    type: str
    title: str
    status: int
    detail: Annotated[str, Field(description="What was received, what is accepted, what to do.")]
    instance: str
    code: Annotated[str, Field(description="Stable name of the error.")]
    request_id: str
    retryable: Annotated[bool, Field(description="Whether the same request may succeed later.")]
    error: Annotated[
        str | SkipJsonSchema[None],
        Field(description="Routes of the Open Inference Protocol, under /v2: the detail again."),
    ] = None


@dataclass(slots=True)
class MultiModelResponse:
    """The result of each model of a request, in their order: detections or an error."""

    results: list[DetectResponse | Problem]


@dataclass(slots=True)
class BatchResponse:
    """The result for each image of a request, in their order: detections or an error."""

    results: list[DetectResponse | Problem]
