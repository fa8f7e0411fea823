"""Middleware of every request: its record, response headers, metrics, log line and span."""

import asyncio
import logging
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problem_details import internal_error_response, shutdown_response
from service.http.request_scope import set_request_record
from service.http.state import state_of
from service.observability.logs import log_request
from service.observability.metrics import Metrics
from service.observability.request_record import RequestRecord, choose_request_id, current_record
from service.observability.tracing import Tracing, read_trace_context

_log = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
# Of responses that have none of their own.
_DEFAULT_HEADERS = [
    # Detections can be personal data, and probes must not be cached.
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


class RequestContext:
    """ASGI middleware that gives each request an id (the client's if printable) and a record.

    At the end of the request the record becomes metrics, a log line and a span. ``quiet_routes``
    are polled by machines: they are logged only if they fail, and not traced. Responses are not
    buffered.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracing: Tracing | None = None,
        quiet_routes: Collection[str] = (),
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._quiet_routes = quiet_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process one request; connections of other types are passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _new_record(scope)
        set_request_record(scope, record)
        if self._tracing:
            self._tracing.begin(record)
        token = current_record.set(record)
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", record.request_id.encode()),
                    *_HEADERS,
                    *(header for header in _DEFAULT_HEADERS if header[0] not in own),
                ]
                if state_of(scope["app"]).draining.is_set():
                    # The client must connect again, to another instance.
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # Cancelled by the server, because the shutdown timeout is over.
            if status is None:
                await shutdown_response(Request(scope))(scope, receive, send_with_headers)
        except Exception:
            _log.exception(
                "request %s: unexpected error",
                record.request_id,
                extra={"fields": {"request_id": record.request_id, "trace_id": record.trace_id}},
            )
            if status is not None:
                raise  # the response has begun: the server closes the connection
            await internal_error_response(Request(scope))(scope, receive, send_with_headers)
        finally:
            current_record.reset(token)
            self._end(scope, record, status)

    def _end(self, scope: Scope, record: RequestRecord, status: int | None) -> None:
        # Templates and known methods only: untrusted input must not become label values.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        seconds = time.perf_counter() - record.started_at
        self._metrics.record_request(route, method, str(status or "none"), seconds)
        quiet = route in self._quiet_routes
        log_request(
            record,
            method,
            route,
            scope["path"],
            status,
            seconds,
            quiet=quiet,
            starting=not state_of(scope["app"]).loader.is_done,
        )
        if self._tracing and not quiet:
            self._tracing.end(record, method, route, status)


def _new_record(scope: Scope) -> RequestRecord:
    headers = dict(reversed(scope["headers"]))  # the first of several
    received_id = headers.get(b"x-request-id", b"").decode("latin-1")
    return RequestRecord(
        request_id=choose_request_id(received_id),
        client=scope["client"][0] if scope.get("client") else "unknown",
        parent=read_trace_context(Headers(scope=scope)) if b"traceparent" in headers else None,
    )
