"""The endpoints, grouped by the checks that apply to them."""

import asyncio
import gzip
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from starlette.routing import BaseRoute

from model_package import ModelManifest
from service import errors
from service.async_detector import AsyncDetector
from service.batching.types import PRIORITY_OFFSETS_S, SchedulingOptions
from service.cancellation import CancelScope
from service.detector import Prediction
from service.http.compression import accepts_gzip
from service.http.image_route import ImageRoute
from service.http.openapi import DETECT, DETECT_BATCH
from service.http.peers import METRICS, READINESS
from service.http.problem_details import problem_of, problem_responses
from service.http.query_parameters import read_parameters, read_scheduling_headers
from service.http.request_body import BodyFields, read_body
from service.http.request_scope import disconnect_signal, request_record
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
from service.model_loader import RETRY_AFTER_S
from service.observability.metrics import merge_metrics
from service.options import RequestOptions

router = APIRouter()
"""Other endpoints for clients; API key and rate limit apply."""
probes = APIRouter()
"""Endpoints for orchestrators; open, because kubelet and load balancers have no key."""
monitoring = APIRouter()
"""Endpoints for Prometheus; the API key applies, the rate limit does not."""


@dataclass(frozen=True)
class AcceptedRequest:
    """A detection request that was admitted."""

    detector: AsyncDetector
    options: RequestOptions
    scheduling: SchedulingOptions
    images: list[bytes]


@asynccontextmanager
async def accept_request(
    request: Request,
    model: str | None,
    max_images: int,
    to_options: Callable[[BodyFields], BodyFields] = dict,
) -> AsyncIterator[AcceptedRequest]:
    """Read a detection request and admit it until the block ends.

    ``to_options`` converts the fields of the body to options, which is where a protocol whose
    fields have other names differs.

    Order: model, options of the query string, admission check without the body, body with its
    options, admission. A request occupies places in the queue only once its whole body has
    arrived, so that slow uploads occupy none.

    Raises the errors of :mod:`service.errors` for head, body, options and queue.
    """
    received_at = time.perf_counter()
    state, record = service_state(request), request_record(request)
    settings = state.settings
    detector = state.loader.models.get(model)
    record.model = detector.manifest.name
    parameters = read_parameters(request)
    headers = read_scheduling_headers(request.headers)
    options = detector.rules.complete(parameters)
    allowed_ms = math.inf if headers.deadline_ms is None else headers.deadline_ms
    deadline_at = received_at + allowed_ms / 1000
    # Under overload most requests are rejected here, before their bodies cost anything.
    detector.admission.check(options.inputs.count, deadline_at)
    with state.bodies.hold() as claim:
        reading = read_body(
            request, settings.max_body_bytes, settings.body_timeout_s, claim, max_images
        )
        with CancelScope(state.stopping):
            body = await reading
        images = body.images
        record.record_body(sum(len(image) for image in images))
        if body_options := to_options(body.options):
            options = detector.rules.complete(read_parameters(request, body_options))
        deadline_at = min(deadline_at, time.perf_counter() + settings.request_timeout_s)
        places = options.inputs.count * len(images)
        offset_s = PRIORITY_OFFSETS_S[headers.priority] - detector.size_delay_s(places)
        scheduling = SchedulingOptions(deadline_at, offset_s)
        with detector.admission.admit(places, deadline_at):
            yield AcceptedRequest(detector, options, scheduling, images)


async def detect_in_image(
    request: Request, model: str | None, to_options: Callable[[BodyFields], BodyFields] = dict
) -> tuple[ModelManifest, Prediction]:
    """Detect objects in the image of a request; the arguments are those of :func:`accept_request`.

    Returns the manifest of the model and its prediction, which is added to the request's record.
    """
    async with accept_request(request, model, 1, to_options) as accepted:
        with CancelScope(disconnect_signal(request)):
            prediction = await accepted.detector.detect(
                accepted.images[0], accepted.options, accepted.scheduling
            )
    manifest = accepted.detector.manifest
    request_record(request).record_prediction(
        manifest.name, prediction.batch_size, prediction.stage_s
    )
    return manifest, prediction


async def detect(request: Request) -> Response:
    """Detect objects with the default model."""
    return await _detect(request, None)


async def detect_with_model(
    request: Request, name: Annotated[str, Path(description="A name from GET /models.")]
) -> Response:
    """Detect objects with the named model."""
    return await _detect(request, name)


async def _detect(request: Request, name: str | None) -> Response:
    manifest, prediction = await detect_in_image(request, name)
    response = to_response(manifest, prediction, request_record(request).request_id)
    timing = [f"{stage};dur={ms}" for stage, ms in response.timing_ms.items()]
    timing += [f'batch;desc="{prediction.batch_size}, {prediction.trigger}"']
    headers = {"Server-Timing": ", ".join(timing), "X-Batch-Size": str(prediction.batch_size)}
    return Response(to_json(response), 200, headers, "application/json")


async def detect_batch(request: Request) -> Response:
    """Detect objects in several images with the default model."""
    return await _detect_batch(request, None)


async def detect_batch_with_model(
    request: Request, name: Annotated[str, Path(description="A name from GET /models.")]
) -> Response:
    """Detect objects in several images with the named model."""
    return await _detect_batch(request, name)


async def _detect_batch(request: Request, name: str | None) -> Response:
    max_images = service_state(request).settings.max_images_per_request
    async with accept_request(request, name, max_images) as accepted:
        with CancelScope(disconnect_signal(request)):
            results = await _detect_all(request, accepted)
    return Response(to_json(BatchResponse(results)), 200, None, "application/json")


async def _detect_all(
    request: Request, accepted: AcceptedRequest
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
        tasks = [group.create_task(detect_one(image)) for image in accepted.images]
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
        ("/detect/batch", detect_batch, DETECT_BATCH),
        ("/models/{name}/detect/batch", detect_batch_with_model, DETECT_BATCH),
    ):
        routes.post(path, operation_id=endpoint.__name__, **document)(endpoint)
    return routes.routes


@router.get("/models", operation_id="list_models", tags=["models"])
async def list_models(request: Request) -> ModelList:
    """List every loaded model, and those that could not be loaded."""
    models = service_state(request).loader.models
    return ModelList(
        models=[
            model_summary(detector, is_default=name == models.default_name)
            for name, detector in models.detectors.items()
        ],
        failed=failed_models(models),
    )


@router.get(
    "/models/{name}",
    operation_id="get_model",
    tags=["models"],
    # 422 cannot occur; unless it is declared, FastAPI documents a schema of its own for it.
    responses=problem_responses(
        errors.UnknownModelError,
        errors.InvalidOptionError,
        errors.NotReadyError,
        errors.ModelUnavailableError,
    ),
)
async def get_model(request: Request, name: str) -> PoseModelDetails | ModelDetails:
    """Describe one loaded model, with its whole manifest."""
    models = service_state(request).loader.models
    return model_details(models.get(name), is_default=name == models.default_name)


@probes.head("/livez", include_in_schema=False)
@probes.get(
    "/livez",
    operation_id="live",
    tags=["health"],
    responses=problem_responses(errors.RestartRequiredError),
)
async def live(request: Request) -> Health:
    """Report whether the process can serve, or must be restarted. Uses no queue and no engine."""
    loader = service_state(request).loader
    problem = loader.models.fatal_problem if loader.is_done else None
    if problem is not None:
        raise errors.RestartRequiredError(f"{problem} Restart the service.")
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

    A model that could not be loaded does not affect the status; it is listed in `failed`. With
    several worker processes, all that have loaded their models must be ready.
    """
    state = service_state(request)
    if state.draining.is_set():
        raise errors.StoppingError("The service is shutting down. Send requests elsewhere.")
    models = state.loader.models
    problems = [models.problem or ""]
    if state.peers is not None:
        problems += [answer.decode() for answer in await state.peers.ask(READINESS)]
    for problem in filter(None, problems):
        raise errors.NotReadyError(problem, retry_after_s=RETRY_AFTER_S)
    return Readiness(status="ready", failed=failed_models(models))


@monitoring.head("/metrics", include_in_schema=False)
@monitoring.get("/metrics", operation_id="metrics", tags=["health"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in the Prometheus text format."""
    state = service_state(request)
    content = state.metrics.render()
    if state.peers is not None:
        content = merge_metrics([content, *await state.peers.ask(METRICS)])
    headers = {"Vary": "Accept-Encoding"}
    if accepts_gzip(request.headers):
        headers["Content-Encoding"] = "gzip"
        # In a thread: it takes more than a millisecond, and this endpoint has no rate limit.
        content = await asyncio.to_thread(gzip.compress, content, compresslevel=1, mtime=0)
    return Response(content, 200, headers, "text/plain; version=0.0.4; charset=utf-8")
