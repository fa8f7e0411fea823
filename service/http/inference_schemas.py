"""Schemas of the Open Inference Protocol, for the OpenAPI document."""

from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from service import errors
from service.http.problem_details import REQUEST_ID_FIELD, problem_responses


class Live(BaseModel):
    """Liveness of the service."""

    live: bool


class Ready(BaseModel):
    """Readiness of the service."""

    ready: bool


class ModelReady(Ready):
    """Readiness of a model."""

    name: str


class ServerMetadata(BaseModel):
    """Name, version and extensions of the service."""

    name: str
    version: str
    extensions: list[str]


class Tensor(BaseModel):
    """An input or output of a model."""

    name: str
    datatype: str = Field(description="BYTES, UINT8, INT32 or FP32.")
    shape: list[int] = Field(description="The first dimension is the number of images; -1: any.")


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class ModelStatistics(BaseModel):
    """Statistics of models since they were loaded, as in Triton's statistics extension."""

    model_stats: list[dict[str, Any]]


class IndexEntry(BaseModel):
    """A model of the repository."""

    name: str
    version: str
    state: str = Field(description="READY or UNAVAILABLE.")
    reason: str


class OutputTensor(Tensor):
    """One output of a response."""

    data: list[float | None] | SkipJsonSchema[None] = Field(
        None, description="Values in row-major order; absent if they follow as binary data."
    )
    parameters: dict[str, Any] | SkipJsonSchema[None] = Field(
        None, description="binary_data_size: bytes of the data after the JSON."
    )


class InferenceResponse(BaseModel):
    """The response to an inference request."""

    model_name: str
    model_version: str
    id: str | SkipJsonSchema[None] = Field(None, description="The id of the request.")
    outputs: list[OutputTensor]


_PARAMETERS: dict[str, Any] = {"type": "object", "additionalProperties": True}
_NAME: dict[str, Any] = {"type": "string"}
_INPUT: dict[str, Any] = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": _NAME,
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {
            "type": "array",
            "items": {},
            "description": "Values in row-major order; those of BYTES are files in base64.",
        },
        "parameters": {
            **_PARAMETERS,
            "description": "binary_data_size: bytes of the data after the JSON, in place of data.",
        },
    },
}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _NAME,
        "parameters": {**_PARAMETERS, "description": "binary_data: true or false."},
    },
}
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Repeated in the response."},
        "parameters": {
            **_PARAMETERS,
            "description": "The options of /detect (tensor form: flip), timeout (microseconds), "
            "priority (1 is the highest, 3 the lowest) and binary_data_output.",
        },
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _INPUT},
        "outputs": {
            "type": "array",
            "items": _OUTPUT,
            "description": "The outputs of the response; default: all.",
        },
    },
}
INFER: dict[str, Any] = {
    "response_model": InferenceResponse,
    "responses": {
        200: {"headers": REQUEST_ID_FIELD},
        **problem_responses(
            errors.InvalidInferenceRequestError,
            errors.UnsupportedOperationError,
            *errors.DETECTION_ERRORS,
        ),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "JSON, which binary data of the inputs may follow.",
            "content": {"application/json": {"schema": _REQUEST}},
        }
    },
}
"""Arguments for the decorator of an inference endpoint."""
