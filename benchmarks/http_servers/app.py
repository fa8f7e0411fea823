"""The ASGI application that all servers run; it has no limits of its own.

Run as a module, it is served with the protocol of this project.
"""

import sys
from types import SimpleNamespace
from typing import Any

import uvicorn

from service.http.uvicorn_server import BoundedProtocol
from service.observability.metrics import Metrics

KEEP_ALIVE_S = 5


class BodyLength:
    """Respond with the number of bytes of the body; to ``/refused`` at once with 413."""

    state = SimpleNamespace(service=SimpleNamespace(metrics=Metrics()))
    """What the protocol needs of the service."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle the lifespan or one request."""
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        if scope["path"] == "/refused":
            await _respond(send, 413, b"too large")
            return
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        await _respond(send, 200 if length else 400, b"%d" % length if length else b"empty_body")


async def _respond(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = BodyLength()

if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        http=BoundedProtocol,
        ws="none",
        access_log=False,
        log_level="error",
        timeout_keep_alive=KEEP_ALIVE_S,
    )
