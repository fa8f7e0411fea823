"""Errors on the wire: ``application/problem+json`` (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import BodyTooLargeError, InvalidOptionError, ServiceError
from service.parameters import DetectParameters
from service.schemas import Problem

PROBLEM_JSON = "application/problem+json"
_BUG = "internal_error"
_DISCONNECT = "client_disconnected"


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem document."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    # Every code is there from the start, so that Prometheus sees the first error as an increase.
    for code in (_BUG, _DISCONNECT, *(error.code for error in ServiceError.__subclasses__())):
        app.state.metrics.errors.labels(code)


def problem_responses(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route can answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = by_status.setdefault(
            error.status,
            {
                "description": "",
                "content": {PROBLEM_JSON: {"schema": Problem.model_json_schema()}},
            },
        )
        separator = "; " if entry["description"] else ""
        entry["description"] += f"{separator}`{error.code}`: {error.title}"
    return by_status


def _answer(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    retryable: bool = False,
    headers: dict[str, str] | None = None,
) -> Response:
    request.app.state.metrics.errors.labels(code).inc()
    problem = Problem(
        type=f"urn:centernet-serving:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        error=detail,
        instance=request.url.path[:200],
        code=code,
        request_id=request.scope.get("request_id", ""),
        retryable=retryable,
    )
    return Response(problem.model_dump_json(), status, headers, PROBLEM_JSON)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, BodyTooLargeError):
        headers["Connection"] = "close"  # the rest of the body is not worth reading
    return _answer(
        request,
        error.status,
        error.code,
        error.title,
        error.detail,
        retryable=error.retryable,
        headers=headers,
    )


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"][1:2])
        reason = item["msg"]
        if item["type"] == "extra_forbidden":
            reason = f"The options are {', '.join(DetectParameters.model_fields)}"
        problems.append(f"{name[:100]}: received {str(item.get('input'))[:100]!r}. {reason}.")
    return await _on_service_error(request, InvalidOptionError("; ".join(problems[:5])))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = (
        f"{request.method} {request.url.path[:200]}: {error.detail}. The API is described at /docs."
    )
    headers = dict(error.headers or {})
    code = status.name.lower()
    return _answer(request, status.value, code, status.phrase, detail, headers=headers)


async def _on_disconnect(request: Request, _error: Exception) -> Response:
    request.app.state.metrics.errors.labels(_DISCONNECT).inc()
    return Response(status_code=400)  # nobody is there to read it


def bug_response(request: Request) -> Response:
    """The answer to a request that ran into a mistake of ours."""
    return _answer(
        request,
        500,
        _BUG,
        "The service made a mistake",
        "Something went wrong that is not the request's fault; the service's log has the cause.",
    )
