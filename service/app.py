"""The ASGI application over loaded models."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.body import BodyBudget
from service.context import RequestContext
from service.metrics import Metrics
from service.models import Models
from service.problems import install_problem_handlers
from service.routes import router
from service.settings import Settings


def create_app(models: Models, settings: Settings, metrics: Metrics) -> FastAPI:
    """Make the application; it starts the models' batchers and, at the end, drains them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        models.start()
        try:
            yield
        finally:
            app.state.stopping.set()
            await models.stop()

    app = FastAPI(
        title="CenterNet Serving",
        version=version("centernet-serving"),
        description="Object detection with CenterNet-family models: images in; boxes, poses or "
        "boxes in space out.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.models = models
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.stopping = asyncio.Event()
    bodies = app.state.bodies = BodyBudget(settings.max_upload_bytes)
    metrics.body_bytes.set_function(lambda: bodies.held_bytes)
    install_problem_handlers(app)
    app.include_router(router)
    app.add_middleware(RequestContext, metrics=metrics)
    return app
