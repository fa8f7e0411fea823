"""One RPC, and what applies to all of them: access, limits, errors, metrics, log line and span."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

import grpc
from grpc import aio
from starlette.datastructures import Headers
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.cancellation import CancelScope, Timeout
from service.errors import (
    BodyTooLargeError,
    InternalError,
    QueueFullError,
    ServiceError,
    SlowBodyError,
)
from service.grpc.status import STATUS_DETAILS_KEY, status_code, status_details
from service.observability.logs import log_request
from service.observability.request_record import RequestRecord, choose_request_id, current_record
from service.observability.tracing import Tracing, read_trace_context
from service.state import ServiceState

_log = logging.getLogger(__name__)

MAX_RPCS = 1024
"""RPCs at a time, except for probes."""

MAX_DETAIL_BYTES = 1000
"""Bytes of the text of an error: it is part of the trailers, which clients limit to 8 KiB, and each
byte can take three."""

Context: TypeAlias = aio.ServicerContext[bytes, bytes]
_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


@dataclass
class _Share:
    """The slots of one client, and the number of its RPCs that hold one or wait for one."""

    slots: asyncio.Semaphore
    users: int = 0


class MessageSlots:
    """Limit on the messages that are being received.

    gRPC assembles a message out of reach of :class:`service.body_budget.BodyBudget`, and its size
    is known only when it is complete. At most ``count`` are received at a time, a quarter of them
    from one client, so that slow clients do not stop the others.
    """

    def __init__(self, count: int) -> None:
        self._all = asyncio.Semaphore(count)
        self._per_client = max(1, count // 4)
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def hold(self, client: str) -> AsyncIterator[None]:
        """Wait for a slot and occupy it until the block ends."""
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = _Share(asyncio.Semaphore(self._per_client))
        share.users += 1
        try:
            async with share.slots, self._all:
                yield
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[client]


@dataclass(frozen=True)
class Rpc:
    """One RPC that is being served. ``headers``: its metadata, without binary ones."""

    state: ServiceState
    record: RequestRecord
    headers: Headers
    context: Context
    slots: MessageSlots

    @property
    def allowed_s(self) -> float:
        """Seconds until the deadline of the RPC; infinite without one."""
        left_s = self.context.time_remaining()
        return math.inf if left_s is None else left_s

    async def read_message(self) -> bytes:
        """Return the message of the request.

        Raises :class:`SlowBodyError`, :class:`BodyTooLargeError` and :class:`StoppingError`.
        """
        timeout = Timeout(self.state.settings.body_timeout_s, self._slow_body)
        with CancelScope(self.state.stopping), CancelScope(timeout):
            async with self.slots.hold(self.record.client):
                message = await self.context.read()
        if not isinstance(message, bytes):
            # gRPC has already sent an error of its own if the message was too large.
            raise BodyTooLargeError(
                "The request has no message, or one of more than the "
                f"{self.state.settings.max_body_bytes} bytes that are accepted."
            )
        return message

    def _slow_body(self) -> SlowBodyError:
        return SlowBodyError(
            f"The message did not arrive within {self.state.settings.body_timeout_s:g} s. "
            "Send it again, in fewer RPCs at a time."
        )


@dataclass(frozen=True)
class Method:
    """A method of a service.

    ``handle`` returns the serialized response; that of a streaming method writes its responses to
    the context, and returns nothing of use. ``is_probe``: it needs no key and has no rate limit,
    and is logged only if it fails.
    """

    handle: Callable[[Rpc], Awaitable[bytes]]
    is_probe: bool = False
    is_streaming: bool = False


class RpcHandlers:
    """The handlers of all methods, ``by_path``, such as ``/grpc.health.v1.Health/Check``.

    Every method is registered as one with streamed requests, which are the same on the wire: its
    message is then received when the method asks for it, after the checks of access and load.
    """

    def __init__(
        self, state: ServiceState, tracing: Tracing | None, methods: Mapping[str, Method]
    ) -> None:
        settings = state.settings
        self._state = state
        self._tracing = tracing
        self.by_path = {path: self._handler(path, method) for path, method in methods.items()}
        self._slots = MessageSlots(max(1, settings.max_upload_bytes // settings.max_body_bytes))
        self._active = 0
        self._proxies = ProxyHeadersMiddleware(_no_app, list(settings.trusted_proxies))

    def _handler(self, path: str, method: Method) -> _Handler:
        async def serve(requests: object, context: Context) -> bytes:
            del requests
            return await self._serve(path, method, context)

        if method.is_streaming:
            return grpc.stream_stream_rpc_method_handler(serve)
        return grpc.stream_unary_rpc_method_handler(serve)

    async def _serve(self, path: str, method: Method, context: Context) -> bytes:
        rpc = Rpc(self._state, *self._open(context), context, self._slots)
        record = rpc.record
        response, error = b"", None
        try:
            response = await self._respond(method, rpc)
        except ServiceError as caught:
            error = caught
        except asyncio.CancelledError:  # by gRPC: nothing can be sent
            status, record.code = _cancellation(rpc)
            self._end(path, record, status, is_quiet=method.is_probe)
            raise
        except Exception:
            _log.exception(
                "request %s: unexpected error",
                record.request_id,
                extra={"fields": {"request_id": record.request_id, "trace_id": record.trace_id}},
            )
            error = InternalError(
                "An unexpected error occurred, which is not caused by the request; see the log of "
                "the service."
            )
        trailers: tuple[tuple[str, str | bytes], ...] = (("x-request-id", record.request_id),)
        if error is None:
            context.set_trailing_metadata(trailers)
            self._end(path, record, 200, is_quiet=method.is_probe)
            return response
        record.code = error.code
        self._end(path, record, error.status, is_quiet=method.is_probe)
        detail = error.detail.encode()[:MAX_DETAIL_BYTES].decode(errors="ignore")
        details = status_details(error, detail, record.request_id)
        trailers = (*trailers, (STATUS_DETAILS_KEY, details))
        return await context.abort(status_code(error), detail, trailers)

    def _open(self, context: Context) -> tuple[RequestRecord, Headers]:
        """Return the record of an RPC that begins, and its metadata."""
        metadata = context.invocation_metadata() or ()
        headers = Headers(
            raw=[
                (name.encode(), value.encode("latin-1", "replace"))
                for name, value in metadata
                if isinstance(value, str)
            ]
        )
        client = peer_host(context.peer())
        proxies = self._proxies.trusted_hosts
        if client in proxies and "x-forwarded-for" in headers:
            forwarded = ", ".join(headers.getlist("x-forwarded-for"))
            client = proxies.get_trusted_client_address(forwarded)[0] or client
        record = RequestRecord(
            request_id=choose_request_id(headers.get("x-request-id", "")),
            client=client,
            parent=read_trace_context(headers) if "traceparent" in headers else None,
        )
        if self._tracing:
            self._tracing.begin(record)
        current_record.set(record)  # each RPC has a task of its own
        return record, headers

    async def _respond(self, method: Method, rpc: Rpc) -> bytes:
        if method.is_probe:
            return await method.handle(rpc)
        self._state.access.require_key_and_rate(rpc.headers, rpc.record)
        if self._active >= MAX_RPCS:
            raise QueueFullError(
                f"The service has {MAX_RPCS} RPCs in progress, the most it accepts. Send the "
                "request again later.",
                retry_after_s=1,
            )
        self._active += 1
        try:
            return await method.handle(rpc)
        finally:
            self._active -= 1

    def _end(self, path: str, record: RequestRecord, status: int, *, is_quiet: bool) -> None:
        """Write the metrics, the log line and the span of an RPC.

        ``status``: the HTTP status of the same response, so that dashboards and alerts cover all
        protocols.
        """
        metrics = self._state.metrics
        if record.code is not None:
            metrics.errors.labels(record.code).inc()
        seconds = time.perf_counter() - record.started_at
        metrics.record_request(path, "POST", str(status), seconds)
        is_starting = not self._state.loader.is_done
        log_request(
            *(record, "POST", path, path, status, seconds), quiet=is_quiet, starting=is_starting
        )
        if self._tracing and not is_quiet:
            self._tracing.end(record, "POST", path, status)


def peer_host(peer: str) -> str:
    """Return the address in a peer of gRPC: ``ipv4:127.0.0.1:50000``, ``ipv6:%5B::1%5D:50000``."""
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def _cancellation(rpc: Rpc) -> tuple[int, str]:
    """Return status and code of an RPC that gRPC has cancelled."""
    if rpc.allowed_s <= 0:
        return 504, "deadline_exceeded"
    return (503, "stopping") if rpc.state.stopping.is_set else (400, "client_disconnected")


async def _no_app(*_: object) -> None:
    """Stand for the application of a middleware that is used for its list of proxies."""
