"""Error responses: ``application/problem+json`` (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import InternalError, RouterError, ServiceError, StoppingError
from service.http.request_scope import request_record
from service.http.responses import to_json
from service.http.schemas import Problem
from service.http.state import service_state
from service.observability.metrics import Metrics

PROBLEM_JSON = "application/problem+json"
REQUEST_ID_FIELD: Mapping[str, Any] = {
    "X-Request-ID": {
        "description": "The id that the client sent, if it is printable and has at most 128 "
        "characters; otherwise a new one.",
        "schema": {"type": "string"},
    }
}
_RETRY_AFTER_FIELD: Mapping[str, Any] = {
    "Retry-After": {
        "description": "Seconds after which the same request may succeed, where that is known.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_WITH_RETRY_AFTER = frozenset({429, 503})
_OPEN_INFERENCE = "/v2/"
"""Prefix of the paths of the Open Inference Protocol, whose clients read ``error``."""
HANDLED = (ServiceError, HTTPException, ClientDisconnect)
"""The exceptions that :func:`problem_response` handles."""


def install_problem_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Respond to every error of ``app`` with a problem document."""
    for error_type in HANDLED:
        app.add_exception_handler(error_type, problem_response)
    # Every series exists from the start, so that Prometheus sees the first error as an increase.
    for error in ServiceError.__subclasses__():
        if error is not RouterError:  # its code depends on the status
            metrics.errors.labels(error.code)


def problem_responses(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for the errors of a route."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = by_status.setdefault(
            error.status,
            {
                "description": "",
                "headers": {
                    **REQUEST_ID_FIELD,
                    **(_RETRY_AFTER_FIELD if error.status in _WITH_RETRY_AFTER else {}),
                },
                "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        )
        separator = "; " if entry["description"] else ""
        entry["description"] += f"{separator}`{error.code}`: {error.title}"
    return by_status


def problem_of(error: ServiceError, instance: str, request_id: str) -> Problem:
    """Return the problem document of an error."""
    return Problem(
        type=f"urn:centernet-serving:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=instance[:200],
        code=error.code,
        request_id=request_id,
        retryable=error.retryable,
    )


async def problem_response(request: Request, error: Exception) -> Response:
    """Return the response for one of the exceptions in :data:`HANDLED`."""
    if isinstance(error, ServiceError):
        return _response(request, error)
    if isinstance(error, HTTPException):  # of the router: no such path, method not allowed
        detail = (
            f"{request.method} {request.scope['path'][:200]}: {error.detail}. "
            "The API is described at /docs."
        )
        return _response(request, RouterError(detail, HTTPStatus(error.status_code)), error.headers)
    assert isinstance(error, ClientDisconnect)
    request_record(request).code = "client_disconnected"
    service_state(request).metrics.errors.labels("client_disconnected").inc()
    return Response(status_code=400)  # not sent: the client has disconnected


def shutdown_response(request: Request) -> Response:
    """Return the response to a request that exceeded the shutdown timeout."""
    return _response(
        request,
        StoppingError(
            "The service shut down before the response was ready. Send the request again."
        ),
    )


def internal_error_response(request: Request) -> Response:
    """Return the response to a request that caused an unexpected exception."""
    return _response(
        request,
        InternalError(
            "An unexpected error occurred, which is not caused by the request; see the log of the "
            "service."
        ),
    )


def record_error(request: Request, error: ServiceError) -> dict[str, str]:
    """Count an error in the metrics and the record of the request; return its response headers."""
    request_record(request).code = error.code
    service_state(request).metrics.errors.labels(error.code).inc()
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return headers


def _response(
    request: Request, error: ServiceError, extra_headers: Mapping[str, str] | None = None
) -> Response:
    headers = {**record_error(request, error), **(extra_headers or {})}
    path: str = request.scope["path"]
    problem = problem_of(error, path, request_record(request).request_id)
    if f"{path.removeprefix(request.scope['root_path'])}/".startswith(_OPEN_INFERENCE):
        problem.error = error.detail
    return Response(to_json(problem), error.status, headers, PROBLEM_JSON)
