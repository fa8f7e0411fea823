"""uvicorn, with bounds that it does not have and a shutdown that is announced."""

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
from service.http.schemas import to_json
from service.observability.request_record import new_request_id
from service.settings import Settings

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of a request's line and headers; the parser itself has no bound."""


LAST_CALL_S = 0.2
"""Seconds from the end of listening until idle connections are closed: what clients sent before is
read meanwhile."""

HEAD_TIMEOUT_S = 15.0
"""Seconds for a request's head to arrive; the server would wait for ever."""


class _Outbox:
    """A connection's transport that sends what is written in one turn of the event loop at once.

    An answer comes as two writes, head and body. Sent one by one they wake the client up twice,
    and on a busy machine that stops an engine twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, soon."""
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        """Send what was written, and hang up."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():  # the client may have hung up meanwhile
            self._transport.write(b"".join(written))


class BoundedHeadProtocol(HttpToolsProtocol):
    """Refuses a head that goes on and on, or does not come, or is none, and hangs up.

    ``scope["connection_lost"]`` is an :class:`CancelSignal` for the application.
    """

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(_Outbox(transport, self.loop))  # type: ignore[arg-type]
        self._lost = CancelSignal(ClientDisconnect)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and the work that nobody waits for any more."""
        self._stop_waiting()
        super().connection_lost(exc)
        self._lost.set()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        # ASGI's own way is a task that receives: it costs every request two turns of the loop.
        self.scope["connection_lost"] = self._lost  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        """Stop counting and waiting: what follows is the body, which the application bounds."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Go on reading, which a large body stops: or nobody notices that the client leaves."""
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse, then evaluate what still is a head; most come in one piece."""
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
        """Refuse what is no request; called by the parser's owner, too."""
        self._refuse(MalformedRequestError(f"{msg} The API is described at /docs."))

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_slow_head)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        if self._head_bytes == 0:
            self.transport.close()  # nobody asked anything
        elif not self.transport.is_closing():
            self._refuse(
                SlowHeadError(
                    f"The request's headers did not arrive within {HEAD_TIMEOUT_S:g} s. "
                    "Send the request again."
                )
            )

    def _refuse(self, error: ServiceError) -> None:
        # There is no request yet, so the application cannot answer.
        self.config.app.state.metrics.errors.labels(error.code).inc()  # type: ignore[union-attr]
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
    """Announces its end: not ready first, then no new work, then the end within bounded time."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=BoundedHeadProtocol,
                access_log=False,  # the application logs requests itself
                log_config=None,
                server_header=False,
                # Said outright, because uvicorn trusts 127.0.0.1 unless told otherwise.
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_graceful_shutdown=settings.shutdown_timeout_s,
            )
        )
        self.app = app
        self._drain_delay_s = settings.drain_delay_s
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the models are loaded meanwhile."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Say whether to end, ten times a second: also when the models cannot be loaded."""
        return await super().on_tick(counter) or self.app.state.startup.error is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal be not ready, and after the delay stop; on a second stop at once."""
        is_first = not self.app.state.draining.is_set()
        self.app.state.draining.set()
        if is_first and self._drain_delay_s and self._loop is not None:
            delay_s, loop = self._drain_delay_s, self._loop
            loop.call_soon_threadsafe(loop.call_later, delay_s, self._stop, sig, frame)
        else:
            self._stop(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; then do the rest as usual, when what had arrived has been read."""
        await self._accept_those_in_line()
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_CALL_S)
        await super().shutdown(sockets)

    async def _accept_those_in_line(self) -> None:
        """Let the event loop take the connections that the kernel holds: it would reset them."""
        line = select.poll()
        for server in self.servers:
            for listener in server.sockets:
                line.register(listener, select.POLLIN)
        # More may come all the time; but those who were there first are taken first, at least one
        # in each turn, and the kernel holds no more than the backlog.
        for _ in range(self.config.backlog + 1):
            if not line.poll(0):
                break
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # asyncio's own loop needs a turn more for those it has taken

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.stopping.set()
        super().handle_exit(sig, frame)
