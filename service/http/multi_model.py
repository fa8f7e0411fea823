"""Several models in one image: ``POST /detect/models?models=people,road_vehicles``."""

from dataclasses import replace

from fastapi import Request, Response

from service.async_detector import AsyncDetector
from service.cancellation import CancelScope
from service.detection_requests import (
    Claim,
    RequestBody,
    RequestHead,
    accept_request_for_models,
)
from service.errors import InvalidOptionError, ServiceError
from service.http.detection_requests import read_head
from service.http.problem_details import problem_of
from service.http.request_body import read_body
from service.http.request_scope import disconnect_signal, request_record
from service.http.response_formats import NATIVE, RequestedFormat
from service.http.responses import to_json, to_response
from service.http.schemas import DetectResponse, MultiModelResponse, Problem
from service.http.state import service_state
from service.multi_model_requests import detect_with_models

MODELS_PARAMETER = "models"
MAX_MODELS = 16
"""Models in one request."""


async def detect_with_several_models(request: Request) -> Response:
    """Detect objects with several models in one image, which is decoded once.

    A model that fails has a problem document in its place. All models admit the request, or none:
    then the response is an error.
    """
    requested = RequestedFormat(request, (NATIVE,))
    names = _read_models(request)
    state, record = service_state(request), request_record(request)
    settings = state.settings
    others = (MODELS_PARAMETER,)

    async def read_image(
        detector: AsyncDetector, head: RequestHead, claim: Claim
    ) -> RequestBody[bytes]:
        del detector
        body = await read_body(request, settings.max_body_bytes, settings.body_timeout_s, claim, 1)
        options = requested.take_from(body.options)
        head = read_head(request, options, others) if options else head
        return RequestBody(body.images, len(body.images[0]), head)

    async with accept_request_for_models(
        state,
        record,
        [(name, None) for name in names],
        lambda: read_head(request, others=others),
        read_image,
    ) as accepted:
        with CancelScope(disconnect_signal(request)):
            results = await detect_with_models(state, accepted)
    parts: list[DetectResponse | Problem] = []
    for part, result in zip(accepted, results, strict=True):
        if isinstance(result, ServiceError):
            state.metrics.errors.labels(result.code).inc()
            problem = problem_of(result, request.scope["path"], record.request_id)
            name = part.detector.manifest.name
            parts.append(replace(problem, detail=f"Model {name}: {problem.detail}"))
        else:
            parts.append(to_response(part.detector.manifest, result, record.request_id))
    return Response(to_json(MultiModelResponse(parts)), 200, None, NATIVE.media_type)


def _read_models(request: Request) -> list[str]:
    """Return the names in the query string, which are repeated or separated by commas."""
    values = request.query_params.getlist(MODELS_PARAMETER)
    names = [name.strip() for value in values for name in value.split(",")]
    if not 0 < len(names) <= MAX_MODELS:
        raise InvalidOptionError(
            f"models: received {len(names)} names; 1 to {MAX_MODELS} are accepted. Give them as "
            "models=NAME,NAME in the query string; GET /models lists them."
        )
    if len(set(names)) < len(names):
        raise InvalidOptionError(f"models: received {','.join(names)!r:.200}. Give each name once.")
    return names
