"""What surrounds every request: its record, its headers, its end. Plain ASGI, no buffering."""

import asyncio
import logging
import re
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problem_details import bug_response, cut_off_response
from service.observability.logs import log_request
from service.observability.metrics import Metrics
from service.observability.request_record import RequestRecord, current_record, new_request_id
from service.observability.tracing import Tracing, read_traceparent

_log = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # Detections can be personal, and probes must be asked each time.
    (b"cache-control", b"no-store"),
]
_NO_CONTENT = b"default-src 'none'; frame-ancestors 'none'"
_POLICIES = {
    # Swagger UI comes from where FastAPI takes it; its page has one inline script, which holds
    # nothing of the request.
    "/docs": b"default-src 'none'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    b"script-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    b"style-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    b"img-src data: https://fastapi.tiangolo.com",
}


class RequestContext:
    """Gives each request an id (the client's own if it is printable) and a record.

    At its end the record becomes a metric, a line in the log and a span. Routes of
    ``quiet_routes``, which machines ask all day, are logged only when they fail, and not traced.
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
        """Pass one connection on; only HTTP requests are looked at."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope["record"] = _new_record(scope)
        if self._tracing:
            self._tracing.begin(record)
        token = current_record.set(record)
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                policy = _POLICIES.get(scope["path"], _NO_CONTENT)
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", record.request_id.encode()),
                    *_HEADERS,
                    (b"content-security-policy", policy),
                ]
                if scope["app"].state.draining.is_set():
                    # The next request goes elsewhere.
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # The server does this when the time for shutting down is over.
            if status is None:
                await cut_off_response(Request(scope))(scope, receive, send_with_headers)
        except Exception:
            _log.exception(
                "request %s: unexpected error",
                record.request_id,
                extra={"facts": {"request_id": record.request_id, "trace_id": record.trace_id}},
            )
            if status is not None:
                raise  # too late for an answer: the server closes the connection
            await bug_response(Request(scope))(scope, receive, send_with_headers)
        finally:
            current_record.reset(token)
            self._end(scope, record, status)

    def _end(self, scope: Scope, record: RequestRecord, status: int | None) -> None:
        # The route's template and known methods: words of strangers never become labels.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        seconds = time.perf_counter() - record.started_at
        self._metrics.requests.labels(route, method, str(status or "none")).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        quiet = route in self._quiet_routes
        log_request(record, method, route, scope["path"], status, seconds, quiet=quiet)
        if self._tracing and not quiet:
            self._tracing.end(record, method, route, status)


def _new_record(scope: Scope) -> RequestRecord:
    first = dict(reversed(scope["headers"]))
    offered = first.get(b"x-request-id", b"").decode("latin-1")
    return RequestRecord(
        request_id=offered if _REQUEST_ID.fullmatch(offered) else new_request_id(),
        client=scope["client"][0] if scope.get("client") else "unknown",
        parent=read_traceparent(Headers(scope=scope)) if b"traceparent" in first else None,
    )
