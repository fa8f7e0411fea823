"""The query string and the headers of a detect request."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request

from service.errors import InvalidOptionError

MAX_SCALES = 8


def _split_commas(given: Any) -> Any:
    """``a=1,2&a=3`` reads like ``a=1&a=2&a=3``."""
    if not isinstance(given, list):
        return given
    return [
        part for item in given for part in (item.split(",") if isinstance(item, str) else [item])
    ]


_Scale = Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False)]
_Scales = Annotated[
    list[_Scale], BeforeValidator(_split_commas), Field(min_length=1, max_length=MAX_SCALES)
]
# Wider than any camera, and narrow enough that no result of it leaves the range of numbers.
MIN_FOCAL_PX, MAX_CAMERA_PX = 1.0, 1e6
_Number = Annotated[float, Field(ge=-MAX_CAMERA_PX, le=MAX_CAMERA_PX, allow_inf_nan=False)]
_Focal = Annotated[float, Field(ge=MIN_FOCAL_PX, le=MAX_CAMERA_PX, allow_inf_nan=False)]
_Matrix = Annotated[
    list[_Number], BeforeValidator(_split_commas), Field(min_length=12, max_length=12)
]


Priority = Literal["high", "normal", "low"]
PRIORITY_STEP_S = 1.0
PRIORITY_OFFSETS_S: Mapping[Priority, float] = {
    "high": PRIORITY_STEP_S,
    "normal": 0.0,
    "low": -PRIORITY_STEP_S,
}
"""A priority is worth so many seconds in the queue: bounded, so that nobody starves."""


class DetectParameters(BaseModel):
    """Options of one request, in its query string; what is absent is the model's own choice."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Leave out detections below this score; without it, the model's own value.",
    )
    top_k: int | None = Field(
        None, ge=1, description="Return at most this many detections, best first."
    )
    classes: list[str] | None = Field(
        None, description="Return only these classes, by name; repeat the option for several."
    )
    flip: bool | None = Field(
        None,
        description="Average over the image and its flipped image: better, at twice the cost.",
    )
    scales: _Scales | None = Field(
        None,
        description="Detect at each of these scales of the image and join the results; repeat "
        "the option or separate by commas. Each scale costs as much as an image.",
        examples=[[0.5, 1, 1.5]],
    )
    keep_resolution: bool | None = Field(
        None, description="Pad the image instead of resizing it to the model's input."
    )
    soft_nms: bool | None = Field(
        None,
        description="Lower the scores of boxes that overlap a better one of their class. "
        "Without it: where several scales are joined, and always in the corner systems.",
    )
    fx: _Focal | None = Field(None, description="Focal length, pixels.")
    fy: _Focal | None = Field(None, description="Focal length, pixels.")
    cx: _Number | None = Field(None, description="Principal point, pixels.")
    cy: _Number | None = Field(None, description="Principal point, pixels.")
    projection: _Matrix | None = Field(
        None,
        description="3D models: the camera's 3 x 4 matrix for pixels of the upright original "
        "image, row by row: fx, 0, cx, x, 0, fy, cy, y, 0, 0, 1, z, as rectified cameras have "
        "it, instead of fx, fy, cx and cy; repeat or separate by commas.",
    )


MAX_DEADLINE_MS = 3_600_000


class SchedulingHeaders(BaseModel):
    """How long a request can wait, and what it may overtake."""

    deadline_ms: int | None = Field(
        None,
        alias="X-Deadline-Ms",
        ge=1,
        le=MAX_DEADLINE_MS,
        description="Milliseconds after which nobody wants the answer any more. What cannot be "
        "answered in time is refused at once (429) and costs no engine time.",
    )
    priority: Priority = Field(
        "normal",
        alias="X-Priority",
        description=f"Whom to serve first: a step is worth {PRIORITY_STEP_S:g} s in the queue.",
    )


_LISTS = frozenset({"classes", "scales", "projection"})


def read_parameters(request: Request) -> DetectParameters:
    """Read the options of a request.

    The framework could, but takes half a millisecond of the event loop for each request, and of
    two values where one is meant the last. Raises :class:`InvalidOptionError`.
    """
    if not request.scope["query_string"]:
        return _NO_PARAMETERS
    query = request.query_params
    given: dict[str, Any] = {}
    for name in query:
        values = query.getlist(name)
        if name in DetectParameters.model_fields and name not in _LISTS and len(values) > 1:
            raise InvalidOptionError(
                f"{name}: received {len(values)} values, {values!r:.200}. Give it once."
            )
        given[name] = values if name in _LISTS else values[-1]
    return _validate(DetectParameters, given)


def read_scheduling_headers(headers: Headers) -> SchedulingHeaders:
    """Read the headers that say how urgent a request is. Raises :class:`InvalidOptionError`."""
    given = {
        field.alias: headers[field.alias]
        for field in SchedulingHeaders.model_fields.values()
        if field.alias and field.alias in headers
    }
    return _validate(SchedulingHeaders, given) if given else _NO_HURRY


_NO_PARAMETERS = DetectParameters.model_validate({})
_NO_HURRY = SchedulingHeaders.model_validate({})
_Model = TypeVar("_Model", bound=BaseModel)


def _validate(model: type[_Model], given: Mapping[str, Any]) -> _Model:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_context=False)[:5]:
            reason = item["msg"]
            if item["type"] == "extra_forbidden":
                reason = f"The options are {', '.join(DetectParameters.model_fields)}"
            name, received = str(item["loc"][0]), str(item["input"])
            problems.append(f"{name[:100]}: received {received[:100]!r}. {reason}.")
        raise InvalidOptionError("; ".join(problems)) from None


def describe_parameters() -> list[dict[str, Any]]:
    """OpenAPI's description of what :func:`read_parameters` and :func:`read_scheduling_headers` read."""
    return [
        {
            "name": name,
            "in": place,
            "required": False,
            "description": schema.pop("description"),
            "schema": {key: value for key, value in schema.items() if key != "title"},
        }
        for place, model in (("query", DetectParameters), ("header", SchedulingHeaders))
        for name, schema in model.model_json_schema()["properties"].items()
    ]
