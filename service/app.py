"""The ASGI application over models that are loaded while it answers its probes already."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

from service.cancellation import CancelSignal
from service.errors import RateLimitedError, StoppingError, UnauthorizedError
from service.http.auth import KEY_HEADER, Access, ApiKeys, RateLimiter
from service.http.image_route import DirectRoutes
from service.http.middleware import RequestContext
from service.http.problem_details import install_problem_handlers, problem_responses
from service.http.request_body import BodyBudget
from service.http.routes import detection, monitoring, probes, router
from service.model_loader import ModelLoader
from service.observability.gpu_metrics import watch_gpus
from service.observability.metrics import Metrics
from service.observability.tracing import open_tracing
from service.settings import Settings

# They describe the API and refuse nobody: that is done by Access.
_KEY_SCHEMES = [
    Security(HTTPBearer(auto_error=False)),
    Security(APIKeyHeader(name=KEY_HEADER, auto_error=False)),
]
_EXPOSED_HEADERS = ["Server-Timing", "X-Request-ID", "Retry-After", "X-Batch-Size"]
_log = logging.getLogger(__name__)

LAST_RUN_S = 2.0
"""Seconds at the end for engine runs that nobody waits for any more."""
_LAG_SAMPLES, _LAG_SAMPLE_S = 10, 0.1


def create_app(startup: ModelLoader, settings: Settings, metrics: Metrics) -> FastAPI:
    """Make the application; it runs ``startup`` and, at the end, drains the models.

    ``app.state.draining`` is to be set when the service should not be sent requests any more,
    ``app.state.stopping`` is to happen when it takes none. Raises
    :class:`service.http.auth.KeyFileError` and :class:`service.observability.tracing.TracingUnavailableError`.
    """
    tracing = open_tracing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gpus = watch_gpus(metrics.registry)
        tasks = [
            asyncio.create_task(startup.run(tracing), name="startup"),
            asyncio.create_task(_watch_event_loop(metrics), name="event loop lag"),
        ]
        try:
            yield
        finally:
            app.state.draining.set()
            app.state.stopping.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                async with asyncio.timeout(LAST_RUN_S):
                    await startup.stop()
            except TimeoutError:
                _log.error("a run of the engine has not ended; the process ends without it")
            if gpus:
                gpus.stop()
            if tracing:
                await asyncio.to_thread(tracing.stop)

    app = _Application(
        title="CenterNet Serving",
        version=version("centernet-serving"),
        description="Object detection with CenterNet-family models: images in; boxes, poses or "
        "3D boxes out.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.startup = startup
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.draining = asyncio.Event()
    app.state.stopping = CancelSignal(_stopped)
    bodies = app.state.bodies = BodyBudget(settings.max_upload_bytes)
    metrics.body_bytes.set_function(lambda: bodies.held_bytes)
    install_problem_handlers(app)
    access = _include_routes(app, settings)
    app.add_middleware(DirectRoutes, routes=_routes_of(detection), check=access.within_rate)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            # Whatever header those pages ask for; they get no cookies, there are none.
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    quiet_routes = {route.path for route in _routes_of(probes, monitoring)}
    app.add_middleware(RequestContext, metrics=metrics, tracing=tracing, quiet_routes=quiet_routes)
    return app


def _stopped() -> StoppingError:
    return StoppingError(
        "The service began to shut down before the whole image had arrived. Send it again."
    )


class _Application(FastAPI):
    """FastAPI without its own telemetry, which asks each time whether there is somebody to tell."""

    __call__ = Starlette.__call__


async def _watch_event_loop(metrics: Metrics) -> None:
    """Measure how late the event loop is: what blocks it holds up every request."""
    loop = asyncio.get_running_loop()
    while True:
        worst_s = 0.0
        for _ in range(_LAG_SAMPLES):
            began_at = loop.time()
            await asyncio.sleep(_LAG_SAMPLE_S)
            worst_s = max(worst_s, loop.time() - began_at - _LAG_SAMPLE_S)
        metrics.event_loop_lag.set(worst_s)


def _include_routes(app: FastAPI, settings: Settings) -> Access:
    keys = ApiKeys.read(settings.api_keys_file) if settings.api_keys_file else None
    rate = settings.rate_limit_per_s
    access = Access(keys, RateLimiter(rate, settings.rate_limit_burst) if rate else None)
    with_key: dict[str, Any] = {}
    within_rate: dict[str, Any] = {}
    if keys:
        with_key["dependencies"] = [Depends(access.with_key), *_KEY_SCHEMES]
        with_key["responses"] = problem_responses(UnauthorizedError)
    if keys or rate:
        within_rate["dependencies"] = [
            Depends(access.within_rate),
            *(_KEY_SCHEMES if keys else []),
        ]
        door_errors = [UnauthorizedError] * bool(keys) + [RateLimitedError] * bool(rate)
        within_rate["responses"] = problem_responses(*door_errors)
    app.include_router(probes)
    app.include_router(monitoring, **with_key)
    app.include_router(detection, **within_rate)
    app.include_router(router, **within_rate)
    return access


def _routes_of(*routers: APIRouter) -> list[APIRoute]:
    return [route for one in routers for route in one.routes if isinstance(route, APIRoute)]
