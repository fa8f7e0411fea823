"""The routes of Roboflow's inference server that its ``InferenceHTTPClient`` calls (API v1).

The client finds the task of a model in the registry, and then sends images in base64. The model and
its options are fields of the body, so that the body is read before the request is accepted. Errors
are problem documents, whose text the client shows.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from model_package import KeypointsDecoder
from service.async_detector import AsyncDetector
from service.cancellation import CancelScope
from service.detection_requests import (
    AcceptedRequest,
    Claim,
    RequestBody,
    RequestHead,
    accept_request,
)
from service.errors import InvalidOptionError
from service.http.image_route import ImageRoute
from service.http.request_body import BodyFields, read_body, read_json_object
from service.http.request_scope import disconnect_signal, request_record
from service.http.response_formats import as_received, roboflow_predictions
from service.http.responses import to_response
from service.http.state import service_state
from service.options import DetectParameters, validate_options

KEY_FIELD, MODEL_FIELD = "api_key", "model_id"
# Fields of the body that are options here; the others are settings that these models do not have.
_OPTIONS: Mapping[str, str] = {
    "confidence": "score_threshold",
    "max_detections": "top_k",
    "class_filter": "classes",
}
_MAX_VALUES = 100
"""Values of a JSON body without images."""
_DEFAULT_CONFIDENCES = ("best", "default")


class _KeyRoute(ImageRoute):
    """A route whose API key may be in the query string or the body."""

    async def respond(self, request: Request) -> Response:
        """Check the rate limit; call the endpoint with whether the headers have a key."""
        record = request_record(request)
        has_key = service_state(request).access.limit_rate(request.headers, record) is not None
        content = await self.endpoint(request, has_key)
        return Response(to_json(content), 200, None, "application/json")


roboflow = APIRouter(route_class=_KeyRoute, include_in_schema=False)
"""Endpoints for Roboflow's client; API key and rate limit apply."""


@roboflow.get("/model/registry")
async def list_registry(request: Request, has_key: bool) -> dict[str, Any]:
    """List the models with their tasks and input sizes."""
    if not has_key:
        _check_key(request, request.query_params.get(KEY_FIELD))
    return _registry(request)


@roboflow.post("/model/add")
async def add_model(request: Request, has_key: bool) -> dict[str, Any]:
    """Return the registry if it contains the model; models are not loaded by these requests.

    The client calls it for models that are not in the registry.
    """
    state = service_state(request)
    settings = state.settings
    with state.bodies.hold() as claim, CancelScope(state.stopping):
        fields = await read_json_object(
            request, settings.max_body_bytes, settings.body_timeout_s, claim, _MAX_VALUES
        )
    if not has_key:
        _check_key(request, fields.get(KEY_FIELD))
    state.loader.models.get(_model_name([fields.get(MODEL_FIELD)]))
    return _registry(request)


@roboflow.post("/infer/object_detection")
@roboflow.post("/infer/keypoints_detection")
async def infer(request: Request, has_key: bool) -> dict[str, Any] | list[dict[str, Any]]:
    """Detect objects in one image, or in several."""
    state = service_state(request)
    settings = state.settings
    limits = settings.max_body_bytes, settings.body_timeout_s
    with state.bodies.hold() as claim:
        with CancelScope(state.stopping):
            body = await read_body(request, *limits, claim, settings.max_images_per_request)
        fields = body.options
        if not has_key:
            _check_key(request, fields.get(KEY_FIELD, [None])[-1])
        head = RequestHead(validate_options(DetectParameters, _options(fields)))
        name = _model_name(fields.get(MODEL_FIELD, []))

        async def read_again(
            detector: AsyncDetector, head: RequestHead, claim: Claim
        ) -> RequestBody[bytes]:
            del detector, claim  # which is held until the end of the request
            return RequestBody(body.images, sum(map(len, body.images)), head)

        async with accept_request(
            state, request_record(request), name, None, lambda: head, read_again
        ) as accepted:
            with CancelScope(disconnect_signal(request)):
                predictions = await _detect_all(request, accepted)
    return predictions[0] if len(predictions) == 1 else predictions


async def _detect_all(request: Request, accepted: AcceptedRequest[bytes]) -> list[dict[str, Any]]:
    """Detect in each image; the first error is that of the request."""
    manifest, request_id = accepted.detector.manifest, request_record(request).request_id
    results = await asyncio.gather(
        *(
            accepted.detector.detect(image, accepted.options, accepted.scheduling)
            for image in accepted.items
        ),
        return_exceptions=True,  # all end before the request does
    )
    predictions = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        response = as_received(to_response(manifest, result, request_id))
        predictions.append(roboflow_predictions(response, manifest))
    return predictions


def _registry(request: Request) -> dict[str, Any]:
    detectors = service_state(request).loader.models.detectors
    return {"models": [_describe(name, detector) for name, detector in detectors.items()]}


def _model_name(values: Sequence[Any]) -> str:
    if len(values) != 1 or not isinstance(values[0], str):
        raise InvalidOptionError(
            f"{MODEL_FIELD}: received {values!r:.100}. Give the name of a model; GET /models lists "
            "them."
        )
    return values[0]


def _check_key(request: Request, key: Any) -> None:
    record = request_record(request)
    service_state(request).access.check_body_key("" if key is None else str(key), record)


def _describe(name: str, detector: AsyncDetector) -> dict[str, Any]:
    spec, decoder = detector.manifest.input, detector.manifest.decoder
    is_pose = isinstance(decoder, KeypointsDecoder)
    return {
        "model_id": name,
        "task_type": "keypoint-detection" if is_pose else "object-detection",
        "batch_size": None,
        "input_height": spec.height_px,
        "input_width": spec.width_px,
    }


def _options(fields: BodyFields) -> dict[str, Any]:
    options = {}
    for name, option in _OPTIONS.items():
        values = fields.get(name, [])
        if values and values[-1] not in _DEFAULT_CONFIDENCES:
            options[option] = values if option == "classes" else values[-1]
    return options
