"""Access to the state of the service from an application or a request."""

from fastapi import FastAPI
from starlette.requests import Request

from service.state import ServiceState


def attach_state(app: FastAPI, state: ServiceState) -> None:
    """Set the state of an application."""
    app.state.service = state


def state_of(app: FastAPI) -> ServiceState:
    """Return the state of an application."""
    state: ServiceState = app.state.service
    return state


def service_state(request: Request) -> ServiceState:
    """Return the state of the application that a request was sent to."""
    return state_of(request.app)
