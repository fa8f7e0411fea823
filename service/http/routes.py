"""The endpoints, grouped by the checks that apply to them."""

import asyncio
import gzip
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from starlette.routing import BaseRoute

from service import errors
from service.cancellation import CancelScope
from service.detection_requests import AcceptedRequest
from service.detector import Prediction
from service.health import check_live, check_ready
from service.http.annotated_images import AnnotatedImage
from service.http.compression import choose_encoding
from service.http.detection_requests import accept_images, detect_in_image
from service.http.image_route import ImageRoute
from service.http.multi_model import detect_with_several_models
from service.http.openapi import DETECT, DETECT_BATCH, DETECT_WITH_MODELS
from service.http.problem_details import PROBLEM_JSON, problem_of, problem_responses
from service.http.request_scope import disconnect_signal, request_record
from service.http.response_formats import (
    BATCH_FORMATS,
    CONVERSIONS,
    DETECT_FORMATS,
    IMAGE_FORMATS,
    NATIVE,
    RequestedFormat,
    as_received,
    coco_json,
)
from service.http.responses import failed_models, model_details, model_summary, to_json, to_response
from service.http.schemas import (
    BatchResponse,
    DetectResponse,
    Health,
    ModelDetails,
    ModelList,
    PoseModelDetails,
    Problem,
    Readiness,
)
from service.http.state import service_state
from service.observability.metrics import merge_metrics
from service.peers import METRICS

router = APIRouter()
"""Other endpoints for clients; API key and rate limit apply."""
probes = APIRouter()
"""Endpoints for orchestrators; open, because kubelet and load balancers have no key."""
monitoring = APIRouter()
"""Endpoints for Prometheus; the API key applies, the rate limit does not."""


_Name = Annotated[str, Path(description="A name from GET /models.")]
_Version = Annotated[str, Path(description="One of the versions of the model.")]


async def detect(request: Request) -> Response:
    """Detect objects with the default model."""
    return await _detect(request, None)


async def detect_with_model(request: Request, name: _Name) -> Response:
    """Detect objects with the named model."""
    return await _detect(request, name)


async def detect_with_version(request: Request, name: _Name, version: _Version) -> Response:
    """Detect objects with a version of the named model."""
    return await _detect(request, name, version)


async def _detect(request: Request, name: str | None, version: str | None = None) -> Response:
    requested = RequestedFormat(request, DETECT_FORMATS)
    request_id = request_record(request).request_id
    content: bytes | None = None

    async def draw(accepted: AcceptedRequest[bytes], prediction: Prediction) -> None:
        nonlocal content
        if requested.format in IMAGE_FORMATS:
            began_at = time.perf_counter()
            manifest = accepted.detector.manifest
            result = as_received(to_response(manifest, prediction, request_id))
            drawn = AnnotatedImage(result, manifest, requested.format.media_type)
            content = await accepted.detector.draw(
                accepted.items[0], drawn.draw, drawn.cost, accepted.scheduling
            )
            prediction.stage_s["draw"] = time.perf_counter() - began_at

    manifest, prediction = await detect_in_image(request, name, requested.take_from, draw, version)
    response = to_response(manifest, prediction, request_id)
    timing = [f"{stage};dur={ms}" for stage, ms in response.timing_ms.items()]
    timing += [f'batch;desc="{prediction.batch_size}, {prediction.trigger}"']
    headers = {"Server-Timing": ", ".join(timing), "X-Batch-Size": str(prediction.batch_size)}
    if requested.format is NATIVE:
        content = to_json(response)
    elif content is None:
        content = CONVERSIONS[requested.format](as_received(response), manifest)
    return Response(content, 200, headers, requested.format.media_type)


async def detect_batch(request: Request) -> Response:
    """Detect objects in several images with the default model."""
    return await _detect_batch(request, None)


async def detect_batch_with_model(request: Request, name: _Name) -> Response:
    """Detect objects in several images with the named model."""
    return await _detect_batch(request, name)


async def detect_batch_with_version(request: Request, name: _Name, version: _Version) -> Response:
    """Detect objects in several images with a version of the named model."""
    return await _detect_batch(request, name, version)


async def _detect_batch(request: Request, name: str | None, version: str | None = None) -> Response:
    requested = RequestedFormat(request, BATCH_FORMATS)
    max_images = service_state(request).settings.max_images_per_request
    async with accept_images(request, name, max_images, requested.take_from, version) as accepted:
        with CancelScope(disconnect_signal(request)):
            results = await _detect_all(request, accepted)
    if requested.format is NATIVE:
        return Response(to_json(BatchResponse(results)), 200, None, NATIVE.media_type)
    detected = []
    for number, result in enumerate(results, 1):
        if isinstance(result, Problem):  # a list of detections has no place for it
            request_record(request).code = result.code
            problem = replace(result, detail=f"Image {number}: {result.detail}")
            return Response(to_json(problem), result.status, None, PROBLEM_JSON)
        detected.append(as_received(result))
    return Response(coco_json(detected), 200, None, requested.format.media_type)


async def _detect_all(
    request: Request, accepted: AcceptedRequest[bytes]
) -> list[DetectResponse | Problem]:
    """Detect in each image; an error in one does not affect the others."""
    request_id = request_record(request).request_id
    metrics = service_state(request).metrics

    async def detect_one(image: bytes) -> DetectResponse | Problem:
        try:
            prediction = await accepted.detector.detect(
                image, accepted.options, accepted.scheduling
            )
        except errors.ServiceError as error:
            metrics.errors.labels(error.code).inc()
            return problem_of(error, request.scope["path"], request_id)
        return to_response(accepted.detector.manifest, prediction, request_id)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(detect_one(image)) for image in accepted.items]
    return [task.result() for task in tasks]


def detection_routes(**options: Any) -> list[BaseRoute]:
    """Return the routes of the endpoints that receive images; API key and rate limit apply.

    ``options`` are arguments of :class:`fastapi.APIRouter`. Added to the routes of the application,
    they are matched once; FastAPI matches those of an included router once per level.
    """
    routes = APIRouter(route_class=ImageRoute, **options)
    for path, endpoint, document in (
        ("/detect", detect, DETECT),
        ("/models/{name}/detect", detect_with_model, DETECT),
        ("/models/{name}/versions/{version}/detect", detect_with_version, DETECT),
        ("/detect/batch", detect_batch, DETECT_BATCH),
        ("/models/{name}/detect/batch", detect_batch_with_model, DETECT_BATCH),
        (
            "/models/{name}/versions/{version}/detect/batch",
            detect_batch_with_version,
            DETECT_BATCH,
        ),
        ("/detect/models", detect_with_several_models, DETECT_WITH_MODELS),
    ):
        routes.post(path, operation_id=endpoint.__name__, **document)(endpoint)
    return routes.routes


@router.get("/models", operation_id="list_models", tags=["models"])
async def list_models(request: Request) -> ModelList:
    """List every loaded model with its newest version, and the packages that failed to load."""
    models = service_state(request).loader.models
    return ModelList(
        models=[model_summary(detector, models) for detector in models.detectors.values()],
        failed=failed_models(models),
    )


_DESCRIBE: dict[str, Any] = {
    "tags": ["models"],
    "responses": problem_responses(*errors.MODEL_ERRORS),
}


@router.get("/models/{name}", operation_id="get_model", **_DESCRIBE)
async def get_model(request: Request, name: _Name) -> PoseModelDetails | ModelDetails:
    """Describe the newest version of a loaded model, with its whole manifest."""
    models = service_state(request).loader.models
    return model_details(models.get(name), models)


@router.get("/models/{name}/versions/{version}", operation_id="get_model_version", **_DESCRIBE)
async def get_model_version(
    request: Request, name: _Name, version: _Version
) -> PoseModelDetails | ModelDetails:
    """Describe a version of a loaded model, with its whole manifest."""
    models = service_state(request).loader.models
    return model_details(models.get(name, version), models)


@probes.head("/livez", include_in_schema=False)
@probes.get(
    "/livez",
    operation_id="live",
    tags=["health"],
    responses=problem_responses(errors.RestartRequiredError),
)
async def live(request: Request) -> Health:
    """Report whether the process can serve, or must be restarted. Uses no queue and no engine."""
    check_live(service_state(request))
    return Health(status="live")


@probes.head("/startupz", include_in_schema=False)
@probes.get(
    "/startupz",
    operation_id="started",
    tags=["health"],
    responses=problem_responses(errors.NotReadyError),
)
async def started(request: Request) -> Health:
    """Report whether the models are loaded and warmed up."""
    _ = service_state(request).loader.models
    return Health(status="started")


@probes.head("/readyz", include_in_schema=False)
@probes.get(
    "/readyz",
    operation_id="ready",
    tags=["health"],
    responses=problem_responses(errors.StoppingError, errors.NotReadyError),
)
async def ready(request: Request) -> Readiness:
    """Report whether requests are served: models loaded, self-tests passed, not shutting down.

    A package that could not be loaded does not affect the status; it is listed in `failed`. With
    several worker processes, all that have loaded their models must be ready.
    """
    state = service_state(request)
    await check_ready(state)
    models = state.loader.models
    return Readiness(status="ready", failed=failed_models(models), loading=models.loading)


@monitoring.head("/metrics", include_in_schema=False)
@monitoring.get("/metrics", operation_id="metrics", tags=["health"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in the Prometheus text format."""
    state = service_state(request)
    content = state.metrics.render()
    if state.peers is not None:
        content = merge_metrics([content, *await state.peers.ask(METRICS)])
    headers = {"Vary": "Accept-Encoding"}
    if choose_encoding(request.headers, ["gzip"]):
        headers["Content-Encoding"] = "gzip"
        # In a thread: it takes more than a millisecond, and this endpoint has no rate limit.
        content = await asyncio.to_thread(gzip.compress, content, compresslevel=1, mtime=0)
    return Response(content, 200, headers, "text/plain; version=0.0.4; charset=utf-8")
