"""Servers that listen for gRPC as well, with Triton's client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from support.serving import ColourEngine, RunningServer, one_model, run_server
from tritonclient.grpc import InferenceServerClient

from model_package import ModelManifest
from service.engines import Engine
from service.grpc_port import reserved_grpc_port
from service.settings import Settings


@dataclass(frozen=True)
class GrpcServer:
    """A running server: over HTTP, by Triton's client, and by a bare gRPC channel."""

    http: RunningServer
    address: str
    client: InferenceServerClient
    channel: grpc.Channel

    def call(self, method: str, request: bytes = b"", **options: Any) -> bytes:
        """Call a method of the inference service with a serialized message."""
        path = method if method.startswith("/") else f"/inference.GRPCInferenceService/{method}"
        response: bytes = self.channel.unary_unary(path)(request, **{"timeout": 30} | options)
        return response

    def error(self, method: str, request: bytes = b"", **options: Any) -> grpc.RpcError:
        """Return the error of a call, which must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, request, **options)
        return caught.value


StartServer = Callable[..., GrpcServer]


@pytest.fixture
def start_grpc_server() -> Iterator[StartServer]:
    """Start servers with an engine and settings."""
    with ExitStack() as stack:

        def start(
            engine: Engine, manifest: ModelManifest | None = None, **given: Any
        ) -> GrpcServer:
            return _start(stack, engine, manifest, **given)

        yield start


@pytest.fixture(scope="session")
def grpc_server() -> Iterator[GrpcServer]:
    """A server with a colour engine, for tests that do not change its state."""
    with ExitStack() as stack:
        yield _start(stack, ColourEngine(), None)


def _start(
    stack: ExitStack, engine: Engine, manifest: ModelManifest | None, **given: Any
) -> GrpcServer:
    settings = stack.enter_context(
        reserved_grpc_port(Settings(**{"max_batch_size": 4, "grpc_port": 0} | given))
    )
    http = stack.enter_context(run_server(one_model(engine, manifest), settings))
    address = f"127.0.0.1:{settings.grpc_port}"
    client = stack.enter_context(InferenceServerClient(address))
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    channel = stack.enter_context(grpc.insecure_channel(address, options=options))
    return GrpcServer(http, address, client, channel)
