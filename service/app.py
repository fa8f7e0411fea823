"""The ASGI application."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

from service.access import KEY_HEADER, Access, ApiKeys
from service.body_budget import BodyBudget
from service.cancellation import CancelSignal
from service.errors import RateLimitedError, StoppingError, UnauthorizedError
from service.http.access import require_key, require_key_and_rate
from service.http.deepstack import deepstack
from service.http.inference_body import HEADER_LENGTH
from service.http.label_studio.images import TaskImages
from service.http.label_studio.routes import label_studio_routes
from service.http.middleware import RequestContext
from service.http.open_inference import health as open_inference_health
from service.http.open_inference import inference_routes
from service.http.open_inference import router as open_inference
from service.http.problem_details import install_problem_handlers, problem_responses
from service.http.roboflow import roboflow
from service.http.routes import detection_routes, monitoring, probes, router
from service.http.state import attach_state
from service.http.web_pages import web_pages
from service.model_loader import ModelLoader
from service.observability.metrics import Metrics
from service.observability.tracing import open_tracing
from service.peers import METRICS, READINESS, Peers
from service.rate_limit import RateLimiter
from service.settings import Settings
from service.state import ServiceState

if TYPE_CHECKING:
    from service.grpc.server import GrpcServer

# For the OpenAPI document only; the dependencies check the keys.
_KEY_SCHEMES = [
    Security(HTTPBearer(auto_error=False)),
    Security(APIKeyHeader(name=KEY_HEADER, auto_error=False)),
]
_EXPOSED_HEADERS = [
    *("Server-Timing", "X-Request-ID", "Retry-After", "X-Batch-Size"),
    HEADER_LENGTH,
]
_log = logging.getLogger(__name__)

LAST_RUN_S = 2.0
"""Seconds to wait at shutdown for engine runs whose results are no longer needed."""
_LAG_SAMPLES, _LAG_SAMPLE_S = 10, 0.1


class GrpcUnavailableError(Exception):
    """A port for gRPC is configured, but gRPC is not installed."""


def create_app(
    loader: ModelLoader, settings: Settings, metrics: Metrics, peers: Peers | None = None
) -> FastAPI:
    """Create the application; its lifespan loads the models and drains them at shutdown.

    The server sets ``draining`` and ``stopping`` of its :class:`service.state.ServiceState`
    when it shuts down. Raises :class:`service.access.KeyFileError`,
    :class:`service.http.label_studio.images.TokenFileError`,
    :class:`service.observability.tracing.TracingUnavailableError` and
    :class:`GrpcUnavailableError`.
    """
    tracing = open_tracing(settings)
    grpc_server_type = _import_grpc_server(settings)
    keys = ApiKeys.read(settings.api_keys_file) if settings.api_keys_file else None
    rate = settings.rate_limit_per_s
    state = ServiceState(
        loader=loader,
        settings=settings,
        metrics=metrics,
        bodies=BodyBudget(settings.max_upload_bytes),
        access=Access(keys, RateLimiter(rate, settings.rate_limit_burst) if rate else None),
        draining=asyncio.Event(),
        stopping=CancelSignal(_stopping_error),
        reload=asyncio.Event(),
        peers=peers,
    )
    metrics.body_bytes.set_function(lambda: state.bodies.held_bytes)
    task_images = TaskImages(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        grpc_server = None if grpc_server_type is None else grpc_server_type(state, tracing)
        if grpc_server is not None:
            await grpc_server.start()
        loading = asyncio.create_task(loader.run(tracing), name="model loader")
        tasks = [
            loading,
            asyncio.create_task(_measure_event_loop_lag(metrics), name="event loop lag"),
            asyncio.create_task(_change_models(state, loading), name="model changes"),
        ]
        if peers is not None:
            tasks.append(asyncio.create_task(_answer_peers(peers, state, loading), name="peers"))
        try:
            yield
        finally:
            state.draining.set()
            state.stopping.set()
            if grpc_server is not None:
                await grpc_server.wait_stopped()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                async with asyncio.timeout(LAST_RUN_S):
                    await loader.stop()
            except TimeoutError:
                _log.error("an engine run has not ended; the process exits without waiting for it")
            await task_images.close()
            if tracing:
                await asyncio.to_thread(tracing.stop)

    app = _Application(
        title="CenterNet Serving",
        version=version("centernet-serving"),
        description="Object detection with CenterNet-family models: images in; boxes, keypoints, "
        "3D boxes or extreme points out.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    attach_state(app, state)
    install_problem_handlers(app, metrics)
    _include_routers(app, task_images, has_keys=bool(keys), has_rate_limit=bool(rate))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            # Any header: there are no cookies that a page could misuse.
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    quiet = _routes_of(probes, open_inference_health, monitoring, web_pages)
    quiet_routes = {route.path for route in quiet}
    app.add_middleware(RequestContext, metrics=metrics, tracing=tracing, quiet_routes=quiet_routes)
    app.openapi()  # cached: the first request would occupy the event loop for 50 ms
    return app


def _import_grpc_server(settings: Settings) -> "type[GrpcServer] | None":
    """Return the class of the gRPC server if the settings have a port for it."""
    if settings.grpc_port is None:
        return None
    try:
        from service.grpc.server import GrpcServer
    except ModuleNotFoundError as error:
        raise GrpcUnavailableError(
            f"grpc_port is set, but {error.name} is not installed. Install "
            "'centernet-serving[grpc]', or remove the setting."
        ) from error
    return GrpcServer


def _stopping_error() -> StoppingError:
    return StoppingError(
        "The service began to shut down before it had accepted the request. Send it again."
    )


class _Application(FastAPI):
    """FastAPI without the telemetry hook that it calls for every request."""

    __call__ = Starlette.__call__


async def _measure_event_loop_lag(metrics: Metrics) -> None:
    """Measure how late the event loop runs its timers, which delays every request."""
    loop = asyncio.get_running_loop()
    while True:
        worst_s = 0.0
        for _ in range(_LAG_SAMPLES):
            began_at = loop.time()
            await asyncio.sleep(_LAG_SAMPLE_S)
            worst_s = max(worst_s, loop.time() - began_at - _LAG_SAMPLE_S)
        metrics.event_loop_lag.set(worst_s)


async def _change_models(state: ServiceState, loading: "asyncio.Task[None]") -> None:
    """Load the packages again on the signal, and when they change, as far as the settings say."""
    await loading
    if not state.loader.is_done:
        return
    models, settings = state.loader.models, state.settings

    async def reload_on_request() -> None:
        while True:
            await state.reload.wait()
            state.reload.clear()
            await models.reload()

    async with asyncio.TaskGroup() as group:
        group.create_task(reload_on_request())
        if "poll" in settings.model_control:
            group.create_task(models.reload_on_change(settings.model_poll_s))


async def _answer_peers(peers: Peers, state: ServiceState, loading: "asyncio.Task[None]") -> None:
    """Answer the other worker processes once the models are loaded."""
    await loading
    if not state.loader.is_done:
        return
    models = state.loader.models
    await peers.serve(
        {METRICS: state.metrics.render, READINESS: lambda: (models.problem or "").encode()}
    )


def _include_routers(
    app: FastAPI, task_images: TaskImages, *, has_keys: bool, has_rate_limit: bool
) -> None:
    with_key: dict[str, Any] = {}
    with_key_and_rate: dict[str, Any] = {}
    if has_keys:
        with_key["dependencies"] = [Depends(require_key), *_KEY_SCHEMES]
        with_key["responses"] = problem_responses(UnauthorizedError)
    if has_keys or has_rate_limit:
        with_key_and_rate["dependencies"] = [
            Depends(require_key_and_rate),
            *(_KEY_SCHEMES if has_keys else []),
        ]
        access_errors = [UnauthorizedError] * has_keys + [RateLimitedError] * has_rate_limit
        with_key_and_rate["responses"] = problem_responses(*access_errors)
    # The detection endpoints first: routes are matched in order.
    app.router.routes += detection_routes(**with_key_and_rate)
    app.router.routes += inference_routes(**with_key_and_rate)
    app.router.routes += deepstack.routes
    app.router.routes += roboflow.routes
    app.router.routes += label_studio_routes(task_images)
    app.include_router(router, **with_key_and_rate)
    app.include_router(open_inference, **with_key_and_rate)
    app.include_router(probes)
    app.include_router(open_inference_health)
    app.include_router(monitoring, **with_key)
    app.include_router(web_pages)


def _routes_of(*routers: APIRouter) -> list[APIRoute]:
    return [route for group in routers for route in group.routes if isinstance(route, APIRoute)]
