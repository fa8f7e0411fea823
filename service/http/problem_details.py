"""Errors on the wire: ``application/problem+json`` (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import InternalError, RouterError, ServiceError, StoppingError
from service.http.schemas import Problem, to_json

PROBLEM_JSON = "application/problem+json"
REQUEST_ID_FIELD: Mapping[str, Any] = {
    "X-Request-ID": {
        "description": "The client's own id of the request, if it sent a printable one of up to "
        "128 characters, or else a new one.",
        "schema": {"type": "string"},
    }
}
_RETRY_AFTER_FIELD: Mapping[str, Any] = {
    "Retry-After": {
        "description": "Seconds after which the same request may succeed, where that is known.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_WAITABLE = frozenset({429, 503})
HANDLED = (ServiceError, HTTPException, ClientDisconnect)
"""The errors that :func:`problem_response` answers."""


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem document."""
    for kind in HANDLED:
        app.add_exception_handler(kind, problem_response)
    # Every code is there from the start, so that Prometheus sees the first error as an increase.
    for error in ServiceError.__subclasses__():
        if error is not RouterError:  # whose code is that of a status
            app.state.metrics.errors.labels(error.code)


def problem_responses(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route can answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = by_status.setdefault(
            error.status,
            {
                "description": "",
                "headers": {
                    **REQUEST_ID_FIELD,
                    **(_RETRY_AFTER_FIELD if error.status in _WAITABLE else {}),
                },
                "content": {PROBLEM_JSON: {"schema": TypeAdapter(Problem).json_schema()}},
            },
        )
        separator = "; " if entry["description"] else ""
        entry["description"] += f"{separator}`{error.code}`: {error.title}"
    return by_status


def problem_of(error: ServiceError, instance: str, request_id: str) -> Problem:
    """The document that says what went wrong with one request."""
    return Problem(
        type=f"urn:centernet-serving:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        error=error.detail,
        instance=instance[:200],
        code=error.code,
        request_id=request_id,
        retryable=error.retryable,
    )


def _answer(
    request: Request, error: ServiceError, more: Mapping[str, str] | None = None
) -> Response:
    record = request.scope["record"]
    record.code = error.code
    request.app.state.metrics.errors.labels(error.code).inc()
    headers = {**error.headers, **(more or {})}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    document = to_json(problem_of(error, request.scope["path"], record.request_id))
    return Response(document, error.status, headers, PROBLEM_JSON)


async def problem_response(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in one of the errors that are handled."""
    if isinstance(error, ServiceError):
        return _answer(request, error)
    if isinstance(error, HTTPException):  # what the router refuses: no such path, no such method
        asked = f"{request.method} {request.scope['path'][:200]}"
        detail = f"{asked}: {error.detail}. The API is described at /docs."
        return _answer(request, RouterError(detail, HTTPStatus(error.status_code)), error.headers)
    assert isinstance(error, ClientDisconnect)
    request.scope["record"].code = "client_disconnected"
    request.app.state.metrics.errors.labels("client_disconnected").inc()
    return Response(status_code=400)  # nobody is there to read it


def cut_off_response(request: Request) -> Response:
    """The answer to a request that took longer than the shutdown may take."""
    return _answer(
        request,
        StoppingError("The service shut down before the answer was ready. Send the request again."),
    )


def bug_response(request: Request) -> Response:
    """The answer to a request that ran into a mistake of ours."""
    return _answer(
        request,
        InternalError(
            "Something went wrong that is not the request's fault; the service's log has the cause."
        ),
    )
