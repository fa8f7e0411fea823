"""The HTTP surface."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from service import errors
from service.cancellation import CancelScope
from service.http.accept_request import AcceptedRequest, accept_request, models_of
from service.http.problem_details import REQUEST_ID_FIELD, problem_of, problem_responses
from service.http.query_parameters import describe_parameters
from service.http.request_body import IMAGE_FIELD
from service.http.schemas import (
    BatchResponse,
    DetectResponse,
    Health,
    ModelDetails,
    ModelList,
    PoseModelDetails,
    Problem,
    model_details,
    model_facts,
    to_json,
    to_response,
)
from service.model_loader import RETRY_AFTER_S, ModelLoader

detection = APIRouter()
"""What images are sent to: as ``router``, and answered by :mod:`service.http.image_route`."""
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
_DETECT_BATCH: dict[str, Any] = {
    **_DETECT,
    "response_model": BatchResponse,
    "responses": _DETECT_ERRORS,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "A form with a file field for each image.",
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": [IMAGE_FIELD],
                        "properties": {
                            IMAGE_FIELD: {
                                "type": "array",
                                "minItems": 1,
                                "items": _BINARY["schema"],
                            }
                        },
                    }
                }
            },
        },
        "parameters": describe_parameters(),
    },
}


@detection.post("/detect", operation_id="detect", **_DETECT)
async def detect(request: Request) -> Response:
    """Detect objects with the default model."""
    return await _detect(request, None)


@detection.post("/models/{name}/detect", operation_id="detect_with_model", **_DETECT)
async def detect_with_model(
    request: Request, name: Annotated[str, Path(description="A name from GET /models.")]
) -> Response:
    """Detect objects with the named model."""
    return await _detect(request, name)


async def _detect(request: Request, name: str | None) -> Response:
    record = request.scope["record"]
    async with accept_request(request, name, 1) as given:
        with CancelScope(request.scope["connection_lost"]):
            prediction = await given.predictor.predict(
                given.images[0], given.options, given.scheduling
            )
    manifest = given.predictor.manifest
    record.record_prediction(manifest.name, prediction.batch_size, prediction.stage_s)
    answer = to_response(manifest, prediction, record.request_id)
    timing = [f"{stage};dur={ms}" for stage, ms in answer.timing_ms.items()]
    timing += [f'batch;desc="{prediction.batch_size}, {prediction.trigger}"']
    headers = {"Server-Timing": ", ".join(timing), "X-Batch-Size": str(prediction.batch_size)}
    return Response(to_json(answer), 200, headers, "application/json")


@detection.post("/detect/batch", operation_id="detect_batch", **_DETECT_BATCH)
async def detect_batch(request: Request) -> Response:
    """Detect objects in several images with the default model."""
    return await _detect_batch(request, None)


@detection.post(
    "/models/{name}/detect/batch", operation_id="detect_batch_with_model", **_DETECT_BATCH
)
async def detect_batch_with_model(
    request: Request, name: Annotated[str, Path(description="A name from GET /models.")]
) -> Response:
    """Detect objects in several images with the named model."""
    return await _detect_batch(request, name)


async def _detect_batch(request: Request, name: str | None) -> Response:
    most = request.app.state.settings.max_images_per_request
    async with accept_request(request, name, most) as given:
        with CancelScope(request.scope["connection_lost"]):
            results = await _answer_all(request, given)
    return Response(to_json(BatchResponse(results)), 200, None, "application/json")


async def _answer_all(request: Request, given: AcceptedRequest) -> list[DetectResponse | Problem]:
    """Answer each image; what is wrong with one is its own problem."""
    request_id = request.scope["record"].request_id

    async def answer(image: bytes) -> DetectResponse | Problem:
        try:
            prediction = await given.predictor.predict(image, given.options, given.scheduling)
        except errors.ServiceError as error:
            request.app.state.metrics.errors.labels(error.code).inc()
            return problem_of(error, request.scope["path"], request_id)
        return to_response(given.predictor.manifest, prediction, request_id)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(image)) for image in given.images]
    return [task.result() for task in tasks]


@router.get("/models", operation_id="list_models", tags=["models"])
async def list_models(request: Request) -> ModelList:
    """List every loaded model."""
    models = models_of(request)
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
    models = models_of(request)
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
    startup: ModelLoader = request.app.state.startup
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
    models_of(request)
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
    for name, predictor in models_of(request).predictors.items():
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
