"""The state of the application, in one typed object."""

import asyncio
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.requests import Request

from service.cancellation import CancelSignal
from service.http.auth import Access
from service.http.peers import Peers
from service.http.request_body import BodyBudget
from service.model_loader import ModelLoader
from service.observability.metrics import Metrics
from service.settings import Settings


@dataclass(frozen=True)
class ServiceState:
    """State shared by all requests of one application.

    ``draining``: set when no further requests should be sent to the service; ``stopping``: set when
    bodies are no longer read. ``peers``: the other worker processes, if there are several.
    """

    loader: ModelLoader
    settings: Settings
    metrics: Metrics
    bodies: BodyBudget
    access: Access
    draining: asyncio.Event
    stopping: CancelSignal
    peers: Peers | None

    def attach(self, app: FastAPI) -> None:
        """Set this as the state of ``app``."""
        app.state.service = self


def state_of(app: FastAPI) -> ServiceState:
    """Return the state of an application."""
    state: ServiceState = app.state.service
    return state


def service_state(request: Request) -> ServiceState:
    """Return the state of the application that a request was sent to."""
    return state_of(request.app)
