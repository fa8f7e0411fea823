"""The object detection routes of DeepStack and CodeProject.AI, for clients such as Frigate.

Images are fields of forms; the fields ``api_key`` and ``min_confidence`` take the place of headers
and options. Boxes are integers and clipped to the image.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from service.access import KEY_HEADER
from service.detector import Prediction
from service.errors import ServiceError, UnauthorizedError
from service.http.access import require_key
from service.http.detection_requests import detect_in_image
from service.http.image_route import ImageRoute
from service.http.problem_details import record_error
from service.http.request_body import BodyFields
from service.http.request_scope import request_record
from service.http.state import service_state


class _FormRoute(ImageRoute):
    """A route whose API key may be a field of the body, and whose errors have DeepStack's form."""

    async def respond(self, request: Request) -> Response:
        """Call the endpoint with ``has_key``: whether the headers have a key."""
        try:
            has_key = _has_key(request)
            return _json(200, await self.endpoint(request, has_key, **request.path_params))
        except ServiceError as error:
            body = {"success": False, "error": error.detail, "code": error.status}
            return _json(error.status, body, record_error(request, error))


deepstack = APIRouter(prefix="/v1/vision", route_class=_FormRoute, include_in_schema=False)
"""Endpoints for DeepStack clients; API key and rate limit apply."""


@deepstack.api_route("/custom/list", methods=["GET", "POST"])
async def list_custom_models(request: Request, has_key: bool) -> dict[str, Any]:
    """List the names of the models. A key is accepted in the headers only."""
    if not has_key:
        await require_key(request)
    return {"success": True, "models": list(service_state(request).loader.models.detectors)}


@deepstack.post("/detection")
async def detect_objects(request: Request, has_key: bool) -> dict[str, Any]:
    """Detect objects with the default model."""
    return await _detect(request, has_key, None)


@deepstack.post("/custom/{name}")
async def detect_custom_objects(request: Request, has_key: bool, name: str) -> dict[str, Any]:
    """Detect objects with the named model."""
    return await _detect(request, has_key, name)


async def _detect(request: Request, has_key: bool, name: str | None) -> dict[str, Any]:
    access = service_state(request).access

    def to_options(fields: BodyFields) -> BodyFields:
        if not has_key:
            access.check_body_key(str(fields.get("api_key", [""])[-1]), request_record(request))
        # DeepStack ignores fields that it does not know.
        return {"score_threshold": fields["min_confidence"]} if "min_confidence" in fields else {}

    if access.needs_key and not has_key and not _is_loaded(request, name):
        # The error of an unknown model, which is raised before the body is read, has the names of
        # all models.
        raise UnauthorizedError(
            "The request has no API key in its headers, which one for a model that is not loaded "
            f"needs. Check the name of the model, or send the key as '{KEY_HEADER}: KEY'."
        )
    manifest, prediction = await detect_in_image(request, name, to_options)
    predictions = list(_predictions(prediction, manifest.classes))
    milliseconds = {stage: 1000 * seconds for stage, seconds in prediction.stage_s.items()}
    return {
        "success": True,
        "predictions": predictions,
        "count": len(predictions),
        "inferenceMs": round(milliseconds["infer"]),
        "processMs": round(sum(milliseconds.values())),
    }


def _has_key(request: Request) -> bool:
    """Check the rate limit; return whether the headers have a valid key."""
    access = service_state(request).access
    return access.limit_rate(request.headers, request_record(request)) is not None


def _is_loaded(request: Request, name: str | None) -> bool:
    models = service_state(request).loader.models
    return (models.default_name if name is None else name) in models.detectors


def _predictions(prediction: Prediction, classes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    found = prediction.detections
    limits = [prediction.image_width_px, prediction.image_height_px] * 2
    boxes = found.boxes_xyxy.round().clip(0, limits).astype(int).tolist()
    scores = found.scores.astype(float).round(6).tolist()
    for class_id, score, box in zip(found.class_ids.tolist(), scores, boxes, strict=True):
        sides = dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True))
        yield {"confidence": score, "label": classes[class_id], **sides}


def _json(status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(body), status, headers, "application/json")
