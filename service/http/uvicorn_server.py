"""uvicorn with limits on every part of a request, graceful shutdown, and reloading on SIGHUP."""

import asyncio
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version
from types import FrameType
from typing import Any, cast

import httptools
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

_log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Maximum bytes of the request line and headers, and of trailers, chunk extensions and chunk sizes;
the parser itself has no limit."""

IDLE_CLOSE_DELAY_S = 0.2
"""Seconds between the end of listening and the closing of idle connections, to read requests that
were sent before."""

HEAD_TIMEOUT_S = 15.0
"""Seconds for the head of a request to arrive; uvicorn has no timeout for it."""

DISCARD_TIMEOUT_S = 10.0
"""Seconds in which the rest of a request is read and discarded after its response was sent. Closed
at once, the connection would be reset, and the client could lose the response (RFC 9112, 9.6)."""

SEND_TIMEOUT_S = 60.0
"""Seconds in which a client must read so much of a response that the next one can be sent."""

MAX_PIPELINED = 32
"""Maximum requests of a connection that wait for the response to an earlier one."""

PARSED_AT_ONCE = 32 * 1024
"""Bytes that are parsed before the limits are checked; each chunk in them takes a call."""


class _TooManyPipelinedError(Exception):
    """A connection has ``MAX_PIPELINED`` requests waiting."""


class _Transport:
    """A transport that sends all writes of one turn of the event loop together.

    A response consists of two writes, head and body. Sent separately they wake up the client
    twice, which on a busy machine preempts an engine thread twice.

    If ``is_receiving`` returns True when it is closed, the transport sends the end of the stream
    and stays open for reading until the client closes it or ``DISCARD_TIMEOUT_S`` is over. What the
    client has not read ``SEND_TIMEOUT_S`` after the closing is dropped.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        is_receiving: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._is_receiving = is_receiving
        self._written: list[bytes] = []
        self.is_discarding = False
        """True if received data must be discarded, because the transport is being closed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn of the event loop."""
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def is_closing(self) -> bool:
        """Return True if nothing can be sent any more."""
        return self.is_discarding or self._transport.is_closing()

    def close(self) -> None:
        """Send the pending writes and close the connection; a second call closes it at once."""
        self._send()
        if self.is_discarding or self._transport.is_closing() or not self._is_receiving():
            self._close()
            return
        self.is_discarding = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(DISCARD_TIMEOUT_S, self._close)

    def _close(self) -> None:
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(SEND_TIMEOUT_S, self._transport.abort)

    def _send(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():  # the client may have disconnected
            self._transport.writelines(written)  # without a copy of a large body


class BoundedProtocol(HttpToolsProtocol):
    """Protocol that bounds the bytes and the time of every part of a request except its body.

    It responds 400 or 408 to requests that exceed the bounds or are not HTTP, then closes the
    connection. It ignores offers to upgrade the protocol, and sets the disconnect signal of each
    request (:mod:`service.http.request_scope`). The application bounds the body.
    """

    _in_head = False
    _is_receiving = False
    """True from the first byte of a request to its last."""
    _overhead_bytes = 0
    """Bytes since the last message, less those of the head and nine eighths of the body."""
    _timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _ignores_upgrade = False
    _error: ServiceError | None = None
    """Error of a pipelined request whose turn to be answered has not come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(_Transport(transport, self.loop, lambda: self._is_receiving))  # type: ignore[arg-type]
        self._disconnected = CancelSignal(ClientDisconnect)
        self._start_timer(HEAD_TIMEOUT_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the work for the requests of this connection."""
        self._stop_timer()
        super().connection_lost(exc)
        self.resume_writing()
        self._disconnected.set()

    def pause_writing(self) -> None:
        """Start the timer for the client to read; called when unsent data accumulate."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def on_message_begin(self) -> None:
        """Start counting the bytes of a head, and its timer."""
        self._in_head = self._is_receiving = True
        self._unset_keepalive_if_required()
        self._start_timer(HEAD_TIMEOUT_S, self._on_slow_head)
        super().on_message_begin()
        set_disconnect_signal(self.scope, self._disconnected)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header field; trailer fields are ignored."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timer: the application limits the body that follows."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _TooManyPipelinedError
        self._in_head = False
        # What remains is the start of the body, if it arrived together with the head.
        self._overhead_bytes -= len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
        self._stop_timer()
        # The parser does not read the body of a request that offers an upgrade; CONNECT has none.
        self._ignores_upgrade = (
            self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        )
        if not self._ignores_upgrade:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on; small chunks, of which each takes a call, are overhead."""
        self._overhead_bytes -= len(body) * 9 // 8
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Resume reading, which a large body has paused, so that a disconnect is noticed."""
        if self._ignores_upgrade:
            return
        self._is_receiving = False
        self._overhead_bytes = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        if not self.pipeline:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Start the timer for the next request, or for the rest of this one."""
        if self._error is not None and not self.pipeline and not self.transport.is_closing():
            self._respond_and_close(self._error)
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self._is_receiving:  # another timer applies
            self._unset_keepalive_if_required()
        if self.cycle.more_body:
            self._start_timer(DISCARD_TIMEOUT_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """Parse in parts, so that a flood of tiny chunks is noticed before it takes long."""
        for start in range(0, len(data), PARSED_AT_ONCE):
            self._parse(data[start : start + PARSED_AT_ONCE])

    def _parse(self, data: bytes) -> None:
        """Parse, then check the number of bytes of an incomplete part."""
        if cast(_Transport, self.transport).is_discarding or self._error is not None:
            return
        self._overhead_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooManyPipelinedError):
                text = f"More than {MAX_PIPELINED} requests were sent before their responses."
            else:
                text = "The data received are not a valid HTTP request."
            self.send_400_response(text)
            return
        if self._overhead_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(
                "The request's headers, trailers, chunk extensions or chunk sizes exceed the "
                f"{MAX_HEAD_BYTES} bytes that are accepted."
            )

    def send_400_response(self, msg: str) -> None:
        """Respond to an invalid request; also called by uvicorn."""
        self._respond(MalformedRequestError(f"{msg} The API is described at /docs."))

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            if self._ignores_upgrade:
                self._parse_without_upgrade(data[error.args[0] :])

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse the head again, without the field that offers an upgrade, and what follows it.

        Clients that offer HTTP/2 (``Upgrade: h2c``) send the body without waiting for a response.
        """
        lines = [
            name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"
        ]
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        request_line = b"%s %s HTTP/%s\r\n" % (method, self.url, version)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(request_line + b"".join(lines) + b"\r\n")
        self._feed(rest)

    def _start_timer(self, seconds: float, on_timeout: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_slow_head(self) -> None:
        if not self.transport.is_closing():
            self._respond(
                SlowHeadError(
                    f"The request's headers did not arrive within {HEAD_TIMEOUT_S:g} s. "
                    "Send the request again."
                )
            )

    def _respond(self, error: ServiceError) -> None:
        """Respond in place of the application, which has no complete request, and close.

        The responses to earlier requests are sent before; data received meanwhile are discarded.
        """
        self._stop_timer()
        in_body = self._is_receiving and not self._in_head
        if in_body and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
            self._error = error
        elif in_body:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:  # a request has one response
                self.transport.close()
            else:
                self._respond_and_close(error)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._error = error
        else:
            self._respond_and_close(error)

    def _respond_and_close(self, error: ServiceError) -> None:
        self._is_receiving = True  # the client may still be sending
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


def url_of(host: str, listener: socket.socket) -> str:
    """Return the URL at which a browser on this machine reaches the listening socket."""
    name = "localhost" if host in ("0.0.0.0", "::", "") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


class Server(uvicorn.Server):
    """Server that shuts down in steps: not ready, no new requests, exit within a bounded time."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                root_path=settings.root_path,
                http=BoundedProtocol,
                access_log=False,  # the middleware logs requests
                log_config=None,
                server_header=False,
                ws="none",
                timeout_keep_alive=settings.keep_alive_s,
                # Explicit, because uvicorn trusts 127.0.0.1 by default.
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_graceful_shutdown=settings.shutdown_timeout_s,
            )
        )
        self.app = app
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._created_at = time.monotonic()
        self._is_ready = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the lifespan loads the models meanwhile."""
        self._loop = asyncio.get_running_loop()
        if "signal" in self._settings.model_control:
            self._loop.add_signal_handler(signal.SIGHUP, state_of(self.app).reload.set)
        await super().startup(sockets)
        _log.info(
            "CenterNet Serving %s listens on %s and loads the models in %s",
            *(version("centernet-serving"), self._url, self._settings.models),
        )

    async def on_tick(self, counter: int) -> bool:
        """Return True to exit; called ten times a second. Exits if loading the models failed."""
        loader = state_of(self.app).loader
        if loader.is_done and not self._is_ready:
            self._is_ready = True
            _log.info(
                "ready after %.1f s, with the models %s: %s",
                *(time.monotonic() - self._created_at, loader.models.summary, self._url),
            )
        return await super().on_tick(counter) or loader.error is not None

    @property
    def _url(self) -> str:
        return url_of(self._settings.host, self.servers[0].sockets[0])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT: stop after the drain delay, not ready meanwhile.

        A second signal stops at once.
        """
        is_first = not state_of(self.app).draining.is_set()
        state_of(self.app).draining.set()
        delay_s, loop = self._settings.drain_delay_s, self._loop
        if is_first and delay_s and loop is not None:
            loop.call_soon_threadsafe(loop.call_later, delay_s, self._stop, sig, frame)
        else:
            self._stop(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, read the requests that have arrived, then shut down as uvicorn does."""
        _log.info("stopping; admitted requests are completed first")
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


class WorkerServer(Server):
    """Server of a worker process; stops if only a restart helps, or if its supervisor has ended."""

    def __init__(self, app: FastAPI, settings: Settings, supervisor_pid: int) -> None:
        super().__init__(app, settings)
        self._supervisor_pid = supervisor_pid

    async def on_tick(self, counter: int) -> bool:
        """Return True to exit; called ten times a second."""
        is_draining = state_of(self.app).draining.is_set()
        if os.getppid() != self._supervisor_pid and not is_draining:
            self.handle_exit(signal.SIGTERM, None)
        loader = state_of(self.app).loader
        # A liveness probe would reach this worker only now and then.
        if counter % 10 == 0 and loader.is_done and loader.models.fatal_problem is not None:
            _log.error("%s The worker ends.", loader.models.fatal_problem)
            return True
        return await super().on_tick(counter)
