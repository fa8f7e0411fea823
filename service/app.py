"""The ASGI application over models that are loaded while it answers its probes already."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.body import BodyBudget
from service.context import RequestContext
from service.metrics import Metrics
from service.problems import install_problem_handlers
from service.routes import router
from service.settings import Settings
from service.startup import Startup

_LAG_SAMPLES, _LAG_SAMPLE_S = 10, 0.1


def create_app(startup: Startup, settings: Settings, metrics: Metrics) -> FastAPI:
    """Make the application; it runs ``startup`` and, at the end, drains the models.

    ``app.state.draining`` is to be set when the service should not be sent requests any more,
    ``app.state.stopping`` when it takes none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(startup.run(), name="startup"),
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
            await startup.stop()

    app = FastAPI(
        title="CenterNet Serving",
        version=version("centernet-serving"),
        description="Object detection with CenterNet-family models: images in; boxes, poses or "
        "boxes in space out.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.startup = startup
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.draining = asyncio.Event()
    app.state.stopping = asyncio.Event()
    bodies = app.state.bodies = BodyBudget(settings.max_upload_bytes)
    metrics.body_bytes.set_function(lambda: bodies.held_bytes)
    install_problem_handlers(app)
    app.include_router(router)
    app.add_middleware(RequestContext, metrics=metrics)
    return app


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
