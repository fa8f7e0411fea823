"""Bounds on what a client can make the gRPC server hold or do."""

import gzip
import socket
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from support.http2 import http2_connection
from support.images import encode, plain
from support.serving import ColourEngine, GatedEngine, wait_until

from benchmarks.hostile_inputs.bounds import memory_bytes
from benchmarks.hostile_inputs.http2_frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    frame,
    message_prefix,
    rpc_headers,
)
from service.errors import UnknownModelError
from service.grpc import rpc, server

from .conftest import GrpcServer, StartServer
from .test_access import ROUTE, infer_message

LIMIT = 1024 * 1024


@pytest.fixture
def small_server(start_grpc_server: StartServer) -> GrpcServer:
    """A server that accepts messages of 1 MiB."""
    return start_grpc_server(ColourEngine(), max_body_bytes=LIMIT, max_upload_bytes=4 * LIMIT)


def test_message_over_the_limit(small_server: GrpcServer) -> None:
    assert small_server.error("ModelInfer", bytes(LIMIT)).code() is not None  # not a message
    error = small_server.error("ModelInfer", bytes(LIMIT + 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"({LIMIT + 1} vs. {LIMIT})" in error.details()
    assert small_server.call("ModelInfer", infer_message())
    wait_until(
        lambda: (
            small_server.http.metric("centernet_request_errors_total", code="body_too_large") == 1
        )
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_bomb(small_server: GrpcServer, encoding: str) -> None:
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    bomb = compress(bytes(48 * LIMIT))
    assert len(bomb) < 60_000, "it must fit the window of a stream"
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = memory_bytes("self", "VmHWM")
    with http2_connection(small_server.address) as connection:
        connection.send(rpc_headers(ROUTE.encode(), 1, [(b"grpc-encoding", encoding.encode())]))
        message = message_prefix(len(bomb), is_compressed=True) + bomb
        for start in range(0, len(message), 16384):
            connection.send(frame(DATA, 0, 1, message[start : start + 16384]))
        payload = connection.trailers(1)
    assert b"Decompressed message larger than max" in payload
    assert memory_bytes("self", "VmHWM") - before < 16 * LIMIT
    assert small_server.call("ModelInfer", infer_message())


def test_metadata_over_the_limit(grpc_server: GrpcServer) -> None:
    size = server.MAX_METADATA_BYTES
    assert grpc_server.call("ServerMetadata", metadata=[("a", "x" * (size // 2))])
    error = grpc_server.error("ServerMetadata", metadata=[("a", "x" * size)])
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = grpc_server.error("ServerMetadata", metadata=[("a", "x" * 16)] * (size // 16))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grpc_server.call("ServerMetadata")


def test_text_of_an_error_is_bounded(
    grpc_server: GrpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients refuse trailers of more than 8 KiB, in which each byte of "é" takes three."""

    def fail(*_: object) -> None:
        raise UnknownModelError("é" * 5000)

    monkeypatch.setattr("service.grpc.inference_service.find_form", fail)
    error = grpc_server.error("ModelConfig")
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "é" * (rpc.MAX_DETAIL_BYTES // 2)


def test_a_message_must_arrive_in_time(start_grpc_server: StartServer) -> None:
    server = start_grpc_server(ColourEngine(), body_timeout_s=0.5)
    with http2_connection(server.address) as connection:
        connection.send(rpc_headers(ROUTE.encode(), 1))
        connection.send(frame(DATA, 0, 1, message_prefix(1000) + bytes(10)))
        trailers = connection.trailers(1)
    assert b"did not arrive within 0.5 s" in trailers
    assert server.http.metric("centernet_request_errors_total", code="slow_body") == 1
    assert server.call("ModelInfer", infer_message())


def test_slow_clients_do_not_stop_the_others(start_grpc_server: StartServer) -> None:
    """One address sends many messages that never end; another one is served meanwhile."""
    server = start_grpc_server(
        ColourEngine(),
        max_body_bytes=LIMIT,
        max_upload_bytes=8 * LIMIT,
        trusted_proxies="127.0.0.1",
    )
    with http2_connection(server.address) as connection:
        for stream in range(1, 101, 2):
            connection.send(
                rpc_headers(ROUTE.encode(), stream, [(b"x-forwarded-for", b"10.0.0.1")])
            )
            connection.send(frame(DATA, 0, stream, message_prefix(1000) + bytes(10)))
        connection.send(rpc_headers(b"/inference.GRPCInferenceService/ServerLive", 101))
        connection.trailers(101)  # the RPCs before it have begun
        metadata = [("x-forwarded-for", "10.0.0.2")]
        assert server.call("ModelInfer", infer_message(), metadata=metadata)
        assert server.client.is_server_ready()


def test_rpcs_at_a_time(start_grpc_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MAX_RPCS", 2)
    engine = GatedEngine()
    server = start_grpc_server(engine)
    pending = [
        server.channel.unary_unary(ROUTE).future(infer_message(), timeout=30) for _ in range(2)
    ]
    wait_until(lambda: server.http.metric("centernet_queue_inputs", model="painted") == 2)
    error = server.error("ServerMetadata")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 RPCs" in error.details()
    assert server.client.is_server_live(), "probes are answered"
    engine.gate.set()
    assert all(future.result() for future in pending)
    assert server.call("ServerMetadata")


def test_connections_at_a_time(
    start_grpc_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    running = start_grpc_server(ColourEngine())
    assert running.call("ServerMetadata")  # the second one: Triton's client connects later
    host, _, port = running.address.rpartition(":")
    sockets = [socket.create_connection((host, int(port))) for _ in range(8)]
    try:
        for connection in sockets:
            connection.settimeout(10)
            connection.sendall(PREFACE + frame(4, 0, 0, b""))
        answered = [_is_answered(connection) for connection in sockets]
    finally:
        for connection in sockets:
            connection.close()
    assert answered.count(True) == 3
    assert running.call("ServerMetadata")


def _is_answered(connection: socket.socket) -> bool:
    try:
        return connection.recv(9) != b""
    except ConnectionResetError:
        return False


def test_a_connection_that_says_nothing_is_closed(
    start_grpc_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 1)
    running = start_grpc_server(ColourEngine())
    host, _, port = running.address.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        while connection.recv(4096):  # the settings of the server
            pass


def flood_of_pings() -> bytes:
    return frame(PING, 0, 0, bytes(8)) * 1000


def flood_of_resets() -> bytes:
    """Return RPCs that are cancelled at once, as in the attack "rapid reset"."""
    return b"".join(
        rpc_headers(ROUTE.encode(), stream) + frame(RST_STREAM, 0, stream, bytes(4))
        for stream in range(1, 4001, 2)
    )


def damaged_frames() -> bytes:
    return frame(DATA, END_STREAM, 1, b"no such stream") + b"\xff" * 1000


def frame_over_the_limit() -> bytes:
    return rpc_headers(ROUTE.encode(), 1) + b"\xff\xff\xff\0\0\0\0\0\x01"


@pytest.mark.parametrize(
    "attack", [flood_of_pings, flood_of_resets, damaged_frames, frame_over_the_limit]
)
def test_hostile_frames_affect_only_their_connection(
    grpc_server: GrpcServer, attack: Callable[[], bytes]
) -> None:
    with http2_connection(grpc_server.address) as connection:
        with suppress(OSError):  # closed while it is sent
            connection.send(attack())
        assert grpc_server.call("ModelInfer", infer_message())
    assert grpc_server.call("ModelInfer", infer_message())
    assert grpc_server.client.is_server_ready()


def test_pings_close_their_connection(grpc_server: GrpcServer) -> None:
    with http2_connection(grpc_server.address) as connection:
        connection.send(flood_of_pings())
        assert any(
            kind == GOAWAY and b"too_many_pings" in payload
            for kind, _, payload in connection.frames()
        )


def test_message_that_lies_about_its_length(grpc_server: GrpcServer) -> None:
    with http2_connection(grpc_server.address) as connection:
        connection.send(rpc_headers(ROUTE.encode(), 1))
        connection.send(frame(DATA, END_STREAM, 1, message_prefix(2**32 - 1) + bytes(10)))
        answer = next(
            (kind, payload)
            for kind, stream, payload in connection.frames()
            if stream == 1 and kind in (HEADERS, RST_STREAM)
        )
    assert answer
    assert grpc_server.call("ModelInfer", infer_message())


@pytest.mark.parametrize("path", [b"/a\xff\xfe", b"/no.Service/Method", b"", b"\xff" * 9000])
def test_unknown_paths_do_not_end_the_server(grpc_server: GrpcServer, path: bytes) -> None:
    """Handled by grpc.aio itself, a path that is not UTF-8 ends its server."""
    with http2_connection(grpc_server.address) as connection:
        connection.send(rpc_headers(path, 1) + frame(DATA, END_STREAM, 1, message_prefix(0)))
        connection.send(rpc_headers(b"/inference.GRPCInferenceService/ServerLive", 3))
        assert connection.trailers(3)
        assert grpc_server.call("ModelInfer", infer_message())
    assert grpc_server.call("ModelInfer", infer_message())


def test_watches_at_a_time(grpc_server: GrpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.grpc.health.MAX_WATCHES", 2)
    watch = grpc_server.channel.unary_stream("/grpc.health.v1.Health/Watch")
    open_calls = [watch(b"") for _ in range(2)]
    for call in open_calls:
        assert next(call) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        next(watch(b""))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in open_calls:
        call.cancel()

    def next_is_served() -> bool:
        call = watch(b"")
        try:
            return bool(next(call) == b"\x08\x01")
        except grpc.RpcError:
            return False
        finally:
            call.cancel()

    wait_until(next_is_served)


def test_memory_of_all_bodies_is_shared_with_http(start_grpc_server: StartServer) -> None:
    engine = GatedEngine()
    image = encode(plain(200, 40))
    server = start_grpc_server(engine, max_body_bytes=4096, max_upload_bytes=4096)
    message = infer_message()
    pending = server.channel.unary_unary(ROUTE).future(message, timeout=30)
    wait_until(lambda: server.http.state.bodies.held_bytes >= len(message))
    held = server.http.state.bodies.held_bytes
    count = (4096 - held) // len(message)
    more = [server.channel.unary_unary(ROUTE).future(message, timeout=30) for _ in range(count)]
    wait_until(lambda: server.http.state.bodies.held_bytes == held + count * len(message))
    error = server.error("ModelInfer", message)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "4096 bytes" in error.details()
    response = server.http.client.post("/detect", content=image)
    engine.gate.set()
    assert response.status_code == 429
    assert all(future.result() for future in [pending, *more])
    wait_until(lambda: server.http.state.bodies.held_bytes == 0)


def test_threads_do_not_grow_with_connections(grpc_server: GrpcServer) -> None:
    before = threading.active_count()
    for _ in range(20):
        with grpc.insecure_channel(
            grpc_server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            assert channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(
                b"", timeout=10
            )
    assert threading.active_count() <= before + 2
