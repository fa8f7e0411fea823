"""uvicorn, with bounds that it does not have and a shutdown that is announced."""

import asyncio
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.settings import Settings

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of a request's line and headers; the parser itself has no bound."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """Answers 400 to a request whose head goes on and on, and closes the connection."""

    _in_head = True
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting: what follows is the body, which the application bounds."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse, then judge what still is a head."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(
                    f"The request's headers exceed the {MAX_HEAD_BYTES} bytes that are accepted."
                )


class Server(uvicorn.Server):
    """Announces its end: not ready first, then no new work, then the end within bounded time."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=BoundedHeadProtocol,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=settings.shutdown_timeout_s,
            )
        )
        self._state = app.state
        self._drain_delay_s = settings.drain_delay_s
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the models are loaded meanwhile."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Say whether to end, ten times a second: also when the models cannot be loaded."""
        return await super().on_tick(counter) or self._state.startup.error is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal be not ready, and after the delay stop; on a second stop at once."""
        is_first = not self._state.draining.is_set()
        self._state.draining.set()
        if is_first and self._drain_delay_s and self._loop is not None:
            delay_s, loop = self._drain_delay_s, self._loop
            loop.call_soon_threadsafe(loop.call_later, delay_s, self._stop, sig, frame)
        else:
            self._stop(sig, frame)

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        self._state.stopping.set()
        super().handle_exit(sig, frame)
