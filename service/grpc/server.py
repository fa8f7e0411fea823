"""The gRPC server: its limits, and its life cycle inside the application."""

import asyncio
import logging
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from service.cancellation import CancelScope
from service.errors import StoppingError
from service.grpc.health import HealthService
from service.grpc.inference_service import InferenceService
from service.grpc.rpc import RpcHandlers
from service.observability.tracing import Tracing
from service.settings import Settings
from service.state import ServiceState

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
MAX_STREAMS = 128
"""RPCs at a time on one connection; clients queue further ones."""
MAX_METADATA_BYTES = 16 * 1024
"""Bytes of the metadata of an RPC."""
HANDSHAKE_TIMEOUT_S = 15
"""Seconds in which a new connection must begin to speak HTTP/2."""
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 60, 20
"""Seconds after which an idle connection is tested with a ping, and for the response to it."""
MIN_PING_INTERVAL_S, MAX_PING_STRIKES = 10, 2
"""Seconds between the pings of a client, and how often it may send them faster before its
connection is closed."""


class GrpcServer:
    """The gRPC server of one process, which shares the models and limits of the HTTP server.

    Create it inside the running event loop.
    """

    def __init__(self, state: ServiceState, tracing: Tracing | None) -> None:
        self._state = state
        methods = {**InferenceService(state).methods, **HealthService(state).methods}
        loop, options = asyncio.get_running_loop(), tuple(_options(state.settings))
        self._server = _Server(loop, None, [], None, options, None)
        self._server.add_registered_method_handlers(RpcHandlers(state, tracing, methods).by_path)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen on ``settings.grpc_port``, and serve until ``state.stopping`` is set.

        Then the RPCs that were accepted are finished, and clients are told to connect elsewhere.
        RPCs that have not ended within ``settings.shutdown_timeout_s`` are cancelled.

        Raises :class:`OSError` if the port is in use.
        """
        settings = self._state.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            port = self._server.add_insecure_port(address.encode())
        except RuntimeError:
            port = 0
        if not port:
            raise OSError(f"cannot listen on {address} for gRPC")
        await self._server.start()
        self._serving = asyncio.create_task(self._serve(), name="gRPC")
        _log.info("gRPC listens on %s", address)

    async def wait_stopped(self) -> None:
        """Wait until all RPCs have ended."""
        if self._serving is not None:
            await self._serving

    async def _serve(self) -> None:
        try:
            with CancelScope(self._state.stopping):
                await asyncio.get_running_loop().create_future()
        except StoppingError:
            await self._server.shutdown(self._state.settings.shutdown_timeout_s)


class _Server(cygrpc.AioServer):  # type: ignore[misc]
    """The server of ``grpc.aio``, without RPCs of methods that are not registered.

    ``grpc.aio`` decodes the path of such an RPC as UTF-8 in its main loop, where an error ends the
    server: one RPC with another path would be enough (grpcio 1.85.1). Those RPCs are left to gRPC's
    core, which holds a bounded number of them until their deadlines. ``pyproject.toml`` limits the
    version of grpcio, because the method is not public.
    """

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[Any]":
        if method is None:
            return asyncio.get_running_loop().create_future()
        future: asyncio.Future[Any] = super()._make_request_call_future(method)
        return future


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        # Compressed messages are bounded before and after their decompression.
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_TIMEOUT_S),
        ("grpc.max_connection_idle_ms", 1000 * settings.keep_alive_s),
        ("grpc.keepalive_time_ms", 1000 * KEEPALIVE_S),
        ("grpc.keepalive_timeout_ms", 1000 * KEEPALIVE_TIMEOUT_S),
        ("grpc.http2.min_ping_interval_without_data_ms", 1000 * MIN_PING_INTERVAL_S),
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
    ]
