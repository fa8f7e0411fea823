"""Health checks, deadlines, cancellation and shutdown of the gRPC server."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.http2 import http2_connection
from support.serving import (
    ColourEngine,
    GatedEngine,
    one_model,
    run_server_with_loader,
    wait_until,
)
from tritonclient.grpc import InferenceServerClient, InferenceServerException

from benchmarks.hostile_inputs.http2_frames import DATA, GOAWAY, frame, message_prefix, rpc_headers
from service.errors import UnknownModelError
from service.grpc_port import reserved_grpc_port
from service.model_loader import ModelLoader
from service.model_registry import ModelRegistry
from service.observability.metrics import Metrics
from service.settings import Settings

from .conftest import GrpcServer, StartServer
from .test_access import ROUTE, infer_message
from .test_inference_service import IMAGES, image_input

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(server: GrpcServer, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    response = health_pb2_grpc.HealthStub(server.channel).Check(request, timeout=20)
    return int(response.status)


def queued(server: GrpcServer) -> float:
    return server.http.metric("centernet_queue_inputs", model="painted")


def errors(server: GrpcServer, code: str) -> float:
    return server.http.metric("centernet_request_errors_total", code=code)


def test_health_of_each_service(grpc_server: GrpcServer) -> None:
    for service in ("", "inference.GRPCInferenceService", "liveness"):
        assert health(grpc_server, service) == SERVING
    with pytest.raises(grpc.RpcError, match="no service 'other'") as caught:
        health(grpc_server, "other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_follows_readiness_and_liveness(
    start_grpc_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.grpc.health.WATCH_INTERVAL_S", 0.05)
    server = start_grpc_server(ColourEngine())
    request = health_pb2.HealthCheckRequest()
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(request, timeout=20)
    assert next(watch).status == SERVING
    detector = server.http.state.loader.models.get("painted")
    monkeypatch.setattr(detector, "_self_test_error", "wrong detections")
    assert next(watch).status == NOT_SERVING
    assert (health(server), health(server, "liveness")) == (NOT_SERVING, SERVING)
    assert not server.client.is_server_ready()
    assert not server.client.is_model_ready("painted")
    assert server.client.is_server_live()
    monkeypatch.setattr(detector, "_self_test_error", None)
    assert next(watch).status == SERVING
    watch.cancel()


def test_an_unknown_service_can_be_watched(grpc_server: GrpcServer) -> None:
    request = health_pb2.HealthCheckRequest(service="other")
    watch = health_pb2_grpc.HealthStub(grpc_server.channel).Watch(request, timeout=20)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_cancelling_an_rpc_cancels_its_place_in_the_queue(start_grpc_server: StartServer) -> None:
    engine = GatedEngine()
    server = start_grpc_server(engine, max_batch_size=1)
    first = server.channel.unary_unary(ROUTE).future(infer_message(), timeout=30)
    assert engine.entered.acquire(timeout=10)
    second = server.channel.unary_unary(ROUTE).future(infer_message(), timeout=30)
    wait_until(lambda: queued(server) == 2)
    second.cancel()
    wait_until(lambda: queued(server) == 1)
    wait_until(lambda: errors(server, "client_disconnected") == 1)
    engine.gate.set()
    assert first.result()
    assert engine.batch_sizes == [1], "the cancelled image did not run"
    assert server.http.state.bodies.held_bytes == 0


def test_closing_the_connection_cancels_its_rpcs(start_grpc_server: StartServer) -> None:
    engine = GatedEngine()
    server = start_grpc_server(engine)
    with grpc.insecure_channel(
        server.address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        pending = channel.unary_unary(ROUTE).future(infer_message(), timeout=30)
        wait_until(lambda: queued(server) == 1)
    assert pending.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: queued(server) == 0)
    engine.gate.set()


@pytest.mark.parametrize("kind", ["deadline of the RPC", "parameter"])
def test_the_earlier_deadline_holds(start_grpc_server: StartServer, kind: str) -> None:
    engine = GatedEngine()
    server = start_grpc_server(engine)
    limits = {"timeout": 300_000} if kind == "parameter" else {"client_timeout": 0.3}
    with pytest.raises(InferenceServerException) as caught:
        server.client.infer(
            "painted", [image_input(IMAGES[:1])], **{"timeout": 60_000_000} | limits
        )
    assert str(caught.value.status()) == "StatusCode.DEADLINE_EXCEEDED"
    wait_until(lambda: queued(server) == 0)
    wait_until(lambda: errors(server, "deadline_exceeded") == 1)
    engine.gate.set()


def test_a_deadline_that_cannot_be_met_is_refused_at_once(start_grpc_server: StartServer) -> None:
    engine = GatedEngine()
    server = start_grpc_server(engine, max_batch_size=1)
    detector = server.http.state.loader.models.get("painted")
    detector.admission._latency.observe(2, 20.0)
    detector.admission._latency.observe(3, 30.0)
    first = server.channel.unary_unary(ROUTE).future(infer_message(), timeout=60)
    assert engine.entered.acquire(timeout=10)
    error = server.error("ModelInfer", infer_message(), timeout=10)
    engine.gate.set()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "more" in error.details()
    assert first.result()


def test_full_queue(start_grpc_server: StartServer) -> None:
    engine = GatedEngine()
    server = start_grpc_server(engine, max_batch_size=1, max_queue_size=1)
    first = server.channel.unary_unary(ROUTE).future(infer_message(), timeout=30)
    wait_until(lambda: queued(server) == 1)
    error = server.error("ModelInfer", infer_message())
    response = server.http.client.post("/detect", content=IMAGES[0])
    engine.gate.set()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (response.status_code, response.json()["detail"]) == (429, error.details())
    assert first.result()


def test_accepted_rpcs_complete_at_shutdown(start_grpc_server: StartServer) -> None:
    engine = GatedEngine()
    server = start_grpc_server(engine, max_batch_size=1)
    with http2_connection(server.address) as idle, ThreadPoolExecutor(1) as threads:
        told = threads.submit(lambda: any(kind == GOAWAY for kind, _, _ in idle.frames()))
        pending = [
            server.channel.unary_unary(ROUTE).future(infer_message(), timeout=30) for _ in range(3)
        ]
        wait_until(lambda: queued(server) == 3)
        server.http.stop()
        assert told.result(20), "the client must connect elsewhere"
        with (
            grpc.insecure_channel(
                server.address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            channel.unary_unary(ROUTE)(infer_message(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not any(future.done() for future in pending)
        engine.gate.set()
        assert all(future.result() for future in pending)


def test_the_process_waits_for_rpcs_that_have_left_the_queue(
    start_grpc_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun = threading.Event()

    async def respond_late(*_: object) -> None:
        has_begun.set()
        await asyncio.sleep(2)
        raise UnknownModelError("a late response")

    monkeypatch.setattr("service.grpc.inference_service.infer", respond_late)
    server = start_grpc_server(ColourEngine())
    pending = server.channel.unary_unary(ROUTE).future(infer_message(), timeout=30)
    assert has_begun.wait(10)
    server.http.stop()
    error = pending.exception()
    assert isinstance(error, grpc.RpcError)
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "a late response")


def test_rpcs_are_served_during_the_drain_delay(start_grpc_server: StartServer) -> None:
    server = start_grpc_server(ColourEngine(), drain_delay_s=600)
    server.http.stop()
    wait_until(lambda: health(server) == NOT_SERVING)
    assert health(server, "liveness") == SERVING
    assert not server.client.is_server_ready()
    assert server.call("ModelInfer", infer_message())
    server.http.stop()


def test_watches_and_slow_messages_end_at_shutdown(start_grpc_server: StartServer) -> None:
    server = start_grpc_server(ColourEngine(), shutdown_timeout_s=3600)
    watch = server.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
    assert next(watch)
    with http2_connection(server.address) as slow:
        slow.send(rpc_headers(ROUTE.encode(), 1) + frame(DATA, 0, 1, message_prefix(1000) + b"1"))
        slow.send(rpc_headers(b"/inference.GRPCInferenceService/ServerLive", 3))
        slow.trailers(3)  # the RPC before it has begun
        server.http.stop()
        assert b"shut down" in slow.trailers(1)
    with pytest.raises(grpc.RpcError) as caught:
        next(watch)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_an_rpc_that_exceeds_the_shutdown_timeout_is_cancelled(
    start_grpc_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.LAST_RUN_S", 0.1)
    engine = GatedEngine()
    server = start_grpc_server(engine, shutdown_timeout_s=1)
    pending = server.channel.unary_unary(ROUTE).future(infer_message(), timeout=30)
    assert engine.entered.acquire(timeout=10)
    server.http.stop()
    error = pending.exception()
    engine.gate.set()
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: errors(server, "stopping") == 1)


def test_a_starting_service_is_live_and_not_ready() -> None:
    gate = threading.Event()

    def load(settings: Settings, metrics: Metrics) -> ModelRegistry:
        assert gate.wait(20)
        return one_model(ColourEngine())(settings, metrics)

    metrics = Metrics()
    with reserved_grpc_port(Settings(grpc_port=0)) as settings:
        loader = ModelLoader(lambda _: load(settings, metrics))
        address = f"127.0.0.1:{settings.grpc_port}"
        with (
            run_server_with_loader(loader, settings, metrics),
            InferenceServerClient(address) as client,
        ):
            assert (client.is_server_live(), client.is_server_ready()) == (True, False)
            with pytest.raises(InferenceServerException, match="is starting") as caught:
                client.infer("painted", [image_input(IMAGES[:1])])
            assert str(caught.value.status()) == "StatusCode.UNAVAILABLE"
            gate.set()
            wait_until(client.is_server_ready)
            client.infer("painted", [image_input(IMAGES[:1])])
