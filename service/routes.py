"""The HTTP surface."""

import math
import time
from typing import Annotated, Any, NoReturn

from fastapi import APIRouter, Path, Request, Response
from starlette.requests import ClientDisconnect

from service import errors
from service.batcher import Urgency
from service.body import IMAGE_FIELD, read_image
from service.interruption import unless
from service.models import Models
from service.parameters import HEAD_STARTS, describe_parameters, read_parameters, read_urgency
from service.problems import REQUEST_ID_FIELD, problem_responses
from service.schemas import (
    DetectResponse,
    Health,
    ModelDetails,
    ModelList,
    PoseModelDetails,
    model_details,
    model_facts,
    to_response,
)
from service.startup import RETRY_AFTER_S, Startup

router = APIRouter()
"""What clients use: behind the API keys and the rate limit, where there are any."""
probes = APIRouter()
"""What orchestrators use: open to everybody, because they have no key and must get an answer."""
monitoring = APIRouter()
"""What Prometheus uses: behind the keys, since it can send one; never limited."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image: JPEG, PNG, WebP or BMP.",
        "content": {
            "image/jpeg": _BINARY,
            "image/png": _BINARY,
            "image/webp": _BINARY,
            "image/bmp": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [IMAGE_FIELD],
                    "properties": {IMAGE_FIELD: _BINARY["schema"]},
                }
            },
        },
    }
}
_DETECT_ERRORS = problem_responses(
    errors.EmptyBodyError,
    errors.BadFormError,
    errors.BadImageError,
    errors.UnknownModelError,
    errors.SlowBodyError,
    errors.BodyTooLargeError,
    errors.ImageSizeError,
    errors.UnsupportedMediaTypeError,
    errors.UnsupportedImageError,
    errors.InvalidOptionError,
    errors.QueueFullError,
    errors.DeadlineUnreachableError,
    errors.RateLimitedError,
    errors.EngineError,
    errors.NotReadyError,
    errors.StoppingError,
    errors.DeadlineExceededError,
)
_ANSWER_HEADERS = {
    **REQUEST_ID_FIELD,
    "X-Batch-Size": {
        "description": "Images that shared the engine run.",
        "schema": {"type": "integer"},
    },
    "Server-Timing": {
        "description": "Milliseconds per stage; what made the batch leave.",
        "schema": {"type": "string"},
    },
}
_DETECT: dict[str, Any] = {
    "response_model": DetectResponse,
    "responses": {200: {"headers": _ANSWER_HEADERS}, **_DETECT_ERRORS},
    "openapi_extra": {**_REQUEST_BODY, "parameters": describe_parameters()},
    "tags": ["detection"],
}


@router.post("/detect", operation_id="detect", **_DETECT)
async def detect(request: Request) -> Response:
    """Detect objects with the default model."""
    return await _detect(request, None)


@router.post("/models/{name}/detect", operation_id="detect_with_model", **_DETECT)
async def detect_with_model(
    request: Request, name: Annotated[str, Path(description="A name from GET /models.")]
) -> Response:
    """Detect objects with the named model."""
    return await _detect(request, name)


async def _detect(request: Request, name: str | None) -> Response:
    asked_at = time.perf_counter()
    settings, record = request.app.state.settings, request.scope["record"]
    predictor = _models(request).get(name)
    # Under overload most requests are refused: before anything that costs more than that.
    predictor.admission.check(1, math.inf)
    parameters, urgent = read_parameters(request.query_params), read_urgency(request.headers)
    options = predictor.options(parameters)
    places = options.inputs.count
    allowed_ms = math.inf if urgent.deadline_ms is None else urgent.deadline_ms
    deadline_at = asked_at + allowed_ms / 1000
    # Still at the door, so that nobody sends a picture for nothing.
    predictor.admission.check(places, deadline_at)
    with request.app.state.bodies.hold() as claim:
        body = await unless(
            _stopping(request),
            read_image(request, settings.max_body_bytes, settings.body_timeout_s, claim),
        )
        record.note_body(len(body))
        deadline_at = min(deadline_at, time.perf_counter() + settings.request_timeout_s)
        urgency = Urgency(deadline_at, HEAD_STARTS[urgent.priority])
        # A place in the queue is for requests that are all here, not for slow uploads.
        with predictor.admission.hold(places, deadline_at):
            work = predictor.predict(body, options, urgency)
            prediction = await unless(_disconnected(request), work)
    record.note_prediction(predictor.manifest.name, prediction.batch_size, prediction.stage_s)
    answer = to_response(predictor.manifest, prediction, record.request_id)
    timing = [f"{stage};dur={ms}" for stage, ms in answer.timing_ms.items()]
    timing += [f'batch;desc="{prediction.batch_size}, {prediction.trigger}"']
    headers = {"Server-Timing": ", ".join(timing), "X-Batch-Size": str(prediction.batch_size)}
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, 200, headers, "application/json")


async def _stopping(request: Request) -> NoReturn:
    """Raise :class:`StoppingError` once the service shuts down."""
    await request.app.state.stopping.wait()
    raise errors.StoppingError(
        "The service began to shut down before the whole image had arrived. Send it again."
    )


async def _disconnected(request: Request) -> NoReturn:
    """Raise ``ClientDisconnect`` once nobody waits for the answer; the body must be read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


@router.get("/models", operation_id="list_models", tags=["models"])
async def list_models(request: Request) -> ModelList:
    """List every loaded model."""
    models = _models(request)
    return ModelList(
        models=[
            model_facts(predictor, is_default=predictor.manifest.name == models.default_name)
            for predictor in models.predictors.values()
        ]
    )


@router.get(
    "/models/{name}",
    operation_id="get_model",
    tags=["models"],
    # 422 cannot occur; not naming it would have FastAPI describe one of its own making.
    responses=problem_responses(errors.UnknownModelError, errors.InvalidOptionError),
)
async def get_model(request: Request, name: str) -> PoseModelDetails | ModelDetails:
    """Describe one loaded model, with its whole manifest."""
    models = _models(request)
    predictor = models.get(name)
    return model_details(predictor, is_default=predictor.manifest.name == models.default_name)


@probes.head("/livez", include_in_schema=False)
@probes.get(
    "/livez",
    operation_id="live",
    tags=["health"],
    responses=problem_responses(errors.UnrecoverableError),
)
async def live(request: Request) -> Health:
    """Say whether the process can still serve; if not, restart it. Uses no queue, no engine."""
    startup: Startup = request.app.state.startup
    if startup.is_done:
        for name, predictor in startup.models.predictors.items():
            if predictor.fatal_problem is not None:
                raise errors.UnrecoverableError(
                    f"Model {name}: {predictor.fatal_problem}. Restart the service."
                )
    return Health(status="live")


@probes.head("/startupz", include_in_schema=False)
@probes.get(
    "/startupz",
    operation_id="started",
    tags=["health"],
    responses=problem_responses(errors.NotReadyError),
)
async def started(request: Request) -> Health:
    """Say whether the models are loaded and warm."""
    _models(request)
    return Health(status="started")


@probes.head("/readyz", include_in_schema=False)
@probes.get(
    "/readyz",
    operation_id="ready",
    tags=["health"],
    responses=problem_responses(errors.StoppingError, errors.NotReadyError),
)
async def ready(request: Request) -> Health:
    """Say whether requests are served: models are loaded and right, no shutdown has begun."""
    if request.app.state.draining.is_set():
        raise errors.StoppingError("The service is shutting down. Send requests elsewhere.")
    for name, predictor in _models(request).predictors.items():
        if predictor.problem is not None:
            raise errors.NotReadyError(
                f"Model {name}: {predictor.problem}.", retry_after_s=RETRY_AFTER_S
            )
    return Health(status="ready")


@monitoring.head("/metrics", include_in_schema=False)
@monitoring.get("/metrics", operation_id="metrics", tags=["health"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    content = request.app.state.metrics.render()
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


def _models(request: Request) -> Models:
    startup: Startup = request.app.state.startup
    return startup.models
