"""OpenAPI descriptions of the detection endpoints, whose requests FastAPI does not read."""

from collections.abc import Sequence
from typing import Any

from service import errors
from service.http.multi_model import MAX_MODELS, MODELS_PARAMETER
from service.http.problem_details import REQUEST_ID_FIELD, problem_responses
from service.http.query_parameters import (
    FORMAT_PARAMETER,
    describe_options,
    describe_parameters,
)
from service.http.request_body import IMAGE_FIELD
from service.http.response_formats import (
    BATCH_FORMATS,
    COCO,
    DETECT_FORMATS,
    IMAGE_FORMATS,
    KITTI,
    NATIVE,
    ROBOFLOW,
    ResponseFormat,
)
from service.http.schemas import BatchResponse, DetectResponse, MultiModelResponse
from service.imaging.image_decoding import ACCEPTED_FORMATS

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
    "description": f"One image: {ACCEPTED_FORMATS}. The types image/* are accepted too.",
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
    errors.EmptyBodyError, errors.BadFormError, errors.NotAcceptableError, *errors.DETECTION_ERRORS
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
_NUMBER, _INTEGER, _STRING = {"type": "number"}, {"type": "integer"}, {"type": "string"}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _optional(schema: dict[str, Any], **properties: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "properties": {**schema["properties"], **properties}}


def _list(items: dict[str, Any], **limits: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


_COCO_RESULTS = _list(
    _optional(
        _object(
            image_id={**_INTEGER, "description": "Position of the image in the request, from 1."},
            category_id={**_INTEGER, "description": "Index into the model's classes."},
            bbox={
                **_list(_NUMBER, minItems=4, maxItems=4),
                "description": "x, y, width, height in pixels of the upright original image.",
            },
            score=_NUMBER,
        ),
        keypoints={**_list(_NUMBER), "description": "x, y and 2 (visible) of each keypoint."},
        segmentation={
            **_list(_list(_NUMBER)),
            "description": "Extreme point models: x and y of the points of the octagon, a polygon.",
        },
    ),
    description="COCO results, as pycocotools reads them.",
)
_ROBOFLOW_KEYPOINT = _object(
    x=_NUMBER, y=_NUMBER, confidence=_NUMBER, class_id=_INTEGER, **{"class": _STRING}
)
_ROBOFLOW_PREDICTION = _optional(
    _object(
        x={**_NUMBER, "description": "Center of the box, in pixels."},
        y=_NUMBER,
        width=_NUMBER,
        height=_NUMBER,
        confidence=_NUMBER,
        class_id=_INTEGER,
        detection_id=_STRING,
        **{"class": _STRING},
    ),
    keypoints=_list(_ROBOFLOW_KEYPOINT),
    points={**_list(_object(x=_NUMBER, y=_NUMBER)), "description": "The octagon."},
)
_ROBOFLOW = _object(
    inference_id=_STRING,
    time={**_NUMBER, "description": "Seconds."},
    image=_object(width=_INTEGER, height=_INTEGER),
    predictions=_list(_ROBOFLOW_PREDICTION),
)
_SCHEMAS: dict[ResponseFormat, dict[str, Any]] = {
    COCO: _COCO_RESULTS,
    KITTI: {**_STRING, "description": "A KITTI result file."},
    ROBOFLOW: _ROBOFLOW,
    **dict.fromkeys(IMAGE_FORMATS, _BINARY),
}


def _contents(formats: Sequence[ResponseFormat]) -> dict[str, Any]:
    """Return the OpenAPI contents of the formats other than the native one."""
    return {one.media_type: {"schema": _SCHEMAS[one]} for one in formats if one is not NATIVE}


def _parameters(formats: Sequence[ResponseFormat]) -> list[dict[str, Any]]:
    """Return the OpenAPI parameters of an endpoint with these formats of responses."""
    choice = {
        "name": FORMAT_PARAMETER,
        "in": "query",
        "required": False,
        "description": "Format of the response; else the media type in `Accept` selects it.",
        "schema": {"enum": [one.name for one in formats], **_STRING},
    }
    return [*describe_parameters(), choice]


DETECT: dict[str, Any] = {
    "response_model": DetectResponse,
    "responses": {
        200: {"headers": _RESPONSE_HEADERS, "content": _contents(DETECT_FORMATS)},
        **_DETECT_ERRORS,
    },
    "openapi_extra": {"requestBody": _REQUEST_BODY, "parameters": _parameters(DETECT_FORMATS)},
    "tags": ["detection"],
}
"""Arguments for the decorator of an endpoint that takes one image."""

DETECT_BATCH: dict[str, Any] = {
    **DETECT,
    "response_model": BatchResponse,
    "responses": {200: {"content": _contents(BATCH_FORMATS)}, **_DETECT_ERRORS},
    "openapi_extra": {"requestBody": _BATCH_BODY, "parameters": _parameters(BATCH_FORMATS)},
}
"""Arguments for the decorator of an endpoint that takes several images."""

_MODELS: dict[str, Any] = {
    "name": MODELS_PARAMETER,
    "in": "query",
    "required": True,
    "description": "Names of models, each once; repeat the parameter or separate them by commas.",
    "schema": {**_list(_STRING), "minItems": 1, "maxItems": MAX_MODELS},
}
DETECT_WITH_MODELS: dict[str, Any] = {
    **DETECT,
    "response_model": MultiModelResponse,
    "responses": _DETECT_ERRORS,
    "openapi_extra": {
        "requestBody": _REQUEST_BODY,
        "parameters": [_MODELS, *describe_parameters()],
    },
}
"""Arguments for the decorator of an endpoint that takes one image and several models."""
