"""OpenAPI descriptions of the detection endpoints, whose requests FastAPI does not read."""

from typing import Any

from service import errors
from service.http.problem_details import REQUEST_ID_FIELD, problem_responses
from service.http.query_parameters import describe_options, describe_parameters
from service.http.request_body import IMAGE_FIELD
from service.http.schemas import BatchResponse, DetectResponse

_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_BASE64: dict[str, Any] = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "The file in base64, or as a data URI.",
}


def _with_options(image: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a form or a JSON object with the image and options."""
    properties = {IMAGE_FIELD: image, **describe_options()}
    schema = {"type": "object", "required": [IMAGE_FIELD], "properties": properties}
    return {"schema": schema}


def _several(image: dict[str, Any]) -> dict[str, Any]:
    return _with_options({"type": "array", "minItems": 1, "items": image})


_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "One image: JPEG, PNG, WebP or BMP. The types image/* are accepted too.",
    # Client generators ignore image types, or make a method for each.
    "content": {
        "application/octet-stream": {"schema": _BINARY},
        "multipart/form-data": _with_options(_BINARY),
        "application/json": _with_options(_BASE64),
    },
}
_BATCH_BODY: dict[str, Any] = {
    "required": True,
    "description": "A form with one file field per image, or JSON with a list of images.",
    "content": {
        "multipart/form-data": _several(_BINARY),
        "application/json": _several(_BASE64),
    },
}
_DETECT_ERRORS = problem_responses(
    errors.EmptyBodyError,
    errors.BadFormError,
    errors.BadJsonError,
    errors.BadImageError,
    errors.UnknownModelError,
    errors.SlowBodyError,
    errors.BodyTooLargeError,
    errors.ImageSizeError,
    errors.TooManyInputsError,
    errors.UnsupportedMediaTypeError,
    errors.UnsupportedImageError,
    errors.InvalidOptionError,
    errors.QueueFullError,
    errors.DeadlineUnreachableError,
    errors.RateLimitedError,
    errors.EngineError,
    errors.NotReadyError,
    errors.ModelUnavailableError,
    errors.StoppingError,
    errors.DeadlineExceededError,
)
_RESPONSE_HEADERS = {
    **REQUEST_ID_FIELD,
    "X-Batch-Size": {
        "description": "Batch size of the engine run.",
        "schema": {"type": "integer"},
    },
    "Server-Timing": {
        "description": "Milliseconds per stage; the trigger of the batch.",
        "schema": {"type": "string"},
    },
}
DETECT: dict[str, Any] = {
    "response_model": DetectResponse,
    "responses": {200: {"headers": _RESPONSE_HEADERS}, **_DETECT_ERRORS},
    "openapi_extra": {"requestBody": _REQUEST_BODY, "parameters": describe_parameters()},
    "tags": ["detection"],
}
"""Arguments for the decorator of an endpoint that takes one image."""

DETECT_BATCH: dict[str, Any] = {
    **DETECT,
    "response_model": BatchResponse,
    "responses": _DETECT_ERRORS,
    "openapi_extra": {"requestBody": _BATCH_BODY, "parameters": describe_parameters()},
}
"""Arguments for the decorator of an endpoint that takes several images."""
