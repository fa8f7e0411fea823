"""uvicorn with limits on request heads and with graceful shutdown."""

import asyncio
import select
import socket
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.cancellation import CancelSignal
from service.errors import MalformedRequestError, ServiceError, SlowHeadError
from service.http.problem_details import PROBLEM_JSON, problem_of
from service.http.request_scope import set_disconnect_signal
from service.http.responses import to_json
from service.http.state import state_of
from service.observability.request_record import new_request_id
from service.settings import Settings

MAX_HEAD_BYTES = 64 * 1024
"""Maximum bytes of the request line and headers; the parser itself has no limit."""

IDLE_CLOSE_DELAY_S = 0.2
"""Seconds between the end of listening and the closing of idle connections, to read requests that
were sent before."""

HEAD_TIMEOUT_S = 15.0
"""Seconds for the head of a request to arrive; uvicorn has no timeout for it."""


class _CoalescingTransport:
    """A transport that sends all writes of one turn of the event loop together.

    A response consists of two writes, head and body. Sent separately they wake up the client
    twice, which on a busy machine preempts an engine thread twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn of the event loop."""
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        """Send the pending writes and close the connection."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():  # the client may have disconnected
            self._transport.write(b"".join(written))


class BoundedHeadProtocol(HttpToolsProtocol):
    """Protocol that responds 400 or 408 to heads that are too long, too slow or not HTTP.

    It then closes the connection. It also sets the disconnect signal of each request
    (:mod:`service.http.request_scope`).
    """

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(_CoalescingTransport(transport, self.loop))  # type: ignore[arg-type]
        self._disconnected = CancelSignal(ClientDisconnect)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the work for the requests of this connection."""
        self._stop_waiting()
        super().connection_lost(exc)
        self._disconnected.set()

    def on_message_begin(self) -> None:
        """Start counting the bytes of a head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        set_disconnect_signal(self.scope, self._disconnected)

    def on_headers_complete(self) -> None:
        """Stop the timer: the application limits the body that follows."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Resume reading, which a large body has paused, so that a disconnect is noticed."""
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse, then check the size of an incomplete head; most arrive in one piece."""
        super().data_received(data)
        if self._in_head:
            if not self._head_bytes:
                self._wait_for_head()
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(
                    f"The request's headers exceed the {MAX_HEAD_BYTES} bytes that are accepted."
                )

    def send_400_response(self, msg: str) -> None:
        """Respond to an invalid request; also called by uvicorn."""
        self._respond(MalformedRequestError(f"{msg} The API is described at /docs."))

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_slow_head)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        if self._head_bytes == 0:
            self.transport.close()  # an idle connection
        elif not self.transport.is_closing():
            self._respond(
                SlowHeadError(
                    f"The request's headers did not arrive within {HEAD_TIMEOUT_S:g} s. "
                    "Send the request again."
                )
            )

    def _respond(self, error: ServiceError) -> None:
        # There is no complete request, so the application cannot respond.
        state_of(self.config.app).metrics.errors.labels(error.code).inc()  # type: ignore[arg-type]
        request_id = new_request_id()
        document = to_json(problem_of(error, "", request_id))
        headers = {
            "content-type": PROBLEM_JSON,
            "content-length": str(len(document)),
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            **error.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        self.transport.write(f"{status}{lines}\r\n".encode() + document)
        self.transport.close()


class Server(uvicorn.Server):
    """Server that shuts down in steps: not ready, no new requests, exit within a bounded time."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=BoundedHeadProtocol,
                access_log=False,  # the middleware logs requests
                log_config=None,
                server_header=False,
                # Explicit, because uvicorn trusts 127.0.0.1 by default.
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_graceful_shutdown=settings.shutdown_timeout_s,
            )
        )
        self.app = app
        self._drain_delay_s = settings.drain_delay_s
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the lifespan loads the models meanwhile."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Return True to exit; called ten times a second. Exits if loading the models failed."""
        return await super().on_tick(counter) or state_of(self.app).loader.error is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT: stop after the drain delay, not ready meanwhile.

        A second signal stops at once.
        """
        is_first = not state_of(self.app).draining.is_set()
        state_of(self.app).draining.set()
        if is_first and self._drain_delay_s and self._loop is not None:
            delay_s, loop = self._drain_delay_s, self._loop
            loop.call_soon_threadsafe(loop.call_later, delay_s, self._stop, sig, frame)
        else:
            self._stop(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, read the requests that have arrived, then shut down as uvicorn does."""
        await self._accept_backlog()
        for server in self.servers:
            server.close()
        await asyncio.sleep(IDLE_CLOSE_DELAY_S)
        await super().shutdown(sockets)

    async def _accept_backlog(self) -> None:
        """Let the event loop accept the connections of the backlog; the kernel would reset them."""
        poller = select.poll()
        for server in self.servers:
            for listener in server.sockets:
                poller.register(listener, select.POLLIN)
        # New connections may keep arriving, but each turn accepts at least one of the oldest, and
        # the kernel queues no more than the backlog.
        for _ in range(self.config.backlog + 1):
            if not poller.poll(0):
                break
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # asyncio's own loop needs one more turn for accepted connections

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        state_of(self.app).stopping.set()
        super().handle_exit(sig, frame)
