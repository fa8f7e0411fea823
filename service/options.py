"""Options of a detection request: as received from the client, and completed for the detector."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.decoders.types import DetectionOptions
from service.errors import InvalidOptionError
from service.imaging.types import InputOptions
from service.settings import split_commas

MAX_SCALES = 8


_Scale = Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False)]
# Without fail_fast, each of thousands of invalid values has an error.
_Scales = Annotated[
    list[_Scale],
    Field(min_length=1, max_length=MAX_SCALES, fail_fast=True),
    BeforeValidator(split_commas),
]
# Wider than any camera, and narrow enough that no result overflows.
MIN_FOCAL_PX, MAX_CAMERA_PX = 1.0, 1e6
_Number = Annotated[float, Field(ge=-MAX_CAMERA_PX, le=MAX_CAMERA_PX, allow_inf_nan=False)]
_Focal = Annotated[float, Field(ge=MIN_FOCAL_PX, le=MAX_CAMERA_PX, allow_inf_nan=False)]
_Matrix = Annotated[
    list[_Number],
    Field(min_length=12, max_length=12, fail_fast=True),
    BeforeValidator(split_commas),
]


class DetectParameters(BaseModel):
    """Options of one request; those left out take the default of the model."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Minimum score of the detections; default: the threshold of the model.",
    )
    top_k: int | None = Field(None, ge=1, description="Maximum number of detections, best first.")
    classes: list[str] | None = Field(
        None, description="Return only these classes, by name; repeat the option for several."
    )
    flip: bool | None = Field(
        None,
        description="Run the flipped image, too, at twice the cost: center models average the "
        "maps of both, corner and extreme point models merge the detections.",
    )
    scales: _Scales | None = Field(
        None,
        description="Detect at each of these scales of the image and merge the results; repeat "
        "the option or separate values by commas. Each scale costs as much as an image.",
        examples=[[0.5, 1, 1.5]],
    )
    keep_resolution: bool | None = Field(
        None, description="Pad the image instead of resizing it to the model's input."
    )
    soft_nms: bool | None = Field(
        None,
        description="Apply soft-NMS. Default: with several scales; always on for corner and "
        "extreme point models.",
    )
    fx: _Focal | None = Field(None, description="Focal length, pixels.")
    fy: _Focal | None = Field(None, description="Focal length, pixels.")
    cx: _Number | None = Field(None, description="Principal point, pixels.")
    cy: _Number | None = Field(None, description="Principal point, pixels.")
    projection: _Matrix | None = Field(
        None,
        description="3D models: the camera's 3 x 4 matrix for pixels of the upright original "
        "image, row by row: fx, 0, cx, x, 0, fy, cy, y, 0, 0, 1, z "
        "(rectified camera). Use either this or fx, fy, cx, cy. Repeat the option or separate "
        "values by commas.",
    )


@dataclass(frozen=True)
class RequestOptions:
    """Complete options of one request; the model supports all of them."""

    detection: DetectionOptions
    inputs: InputOptions


_Model = TypeVar("_Model", bound=BaseModel)


def validate_options(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Validate option values by name. Raises :class:`InvalidOptionError` with up to five errors."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_context=False)[:5]:
            reason = item["msg"]
            if item["type"] == "extra_forbidden":
                reason = f"The options are {', '.join(DetectParameters.model_fields)}"
            name, received = str(item["loc"][0]), str(item["input"])
            problems.append(f"{name[:100]}: received {received[:100]!r}. {reason}.")
        raise InvalidOptionError("; ".join(problems)) from None
