"""What the service expects of its HTTP server, in a replica of Ray Serve."""

import asyncio
from typing import cast

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.cancellation import CancelScope, CancelSignal
from service.http.request_scope import set_disconnect_signal
from service.settings import Settings

_REQUEST_ID = b"x-request-id"


def replica_application(app: FastAPI, settings: Settings) -> ASGIApp:
    """Return ``app`` as a replica runs it: without a server of its own."""
    if not settings.trusted_proxies:
        return _ReplicaApplication(app)
    proxied = ProxyHeadersMiddleware(app, list(settings.trusted_proxies))  # type: ignore[arg-type]
    return _ReplicaApplication(cast(ASGIApp, proxied))


class _ReplicaApplication:
    """ASGI application that sets the disconnect signal of a request when Ray cancels its task.

    Ray cancels it when the client disconnects and when ``request_timeout_s`` of its proxy is over.
    The application runs in a task of its own, which ends by the signal: a cancelled task would be
    counted and answered as one that exceeds the shutdown timeout.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process one request, or the events of the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        disconnected = CancelSignal(ClientDisconnect)
        set_disconnect_signal(scope, disconnected)

        async def receive_while_connected() -> Message:
            with CancelScope(disconnected):
                try:
                    return await receive()
                except Exception as error:
                    # The call to the proxy was cancelled before the task of the request was, or the
                    # proxy has ended.
                    raise ClientDisconnect from error

        async def send_without_request_id(message: Message) -> None:
            # The HTTP server of Ray adds the header itself, with the same value.
            if message["type"] == "http.response.start":
                headers = [header for header in message["headers"] if header[0] != _REQUEST_ID]
                message = {**message, "headers": headers}
            await send(message)

        request = asyncio.ensure_future(
            self._app(scope, receive_while_connected, send_without_request_id)
        )
        try:
            await asyncio.shield(request)
        except asyncio.CancelledError:
            disconnected.set()
            # Unlike `await request`, this leaves the task alone if a second cancellation follows.
            await asyncio.wait([request])
            raise
