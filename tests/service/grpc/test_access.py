"""API keys, rate limits, request ids, metrics, log lines and spans of RPCs."""

import logging
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from support.images import encode, plain
from support.serving import ColourEngine

from service.grpc.inference_pb2 import ModelInferRequest
from service.grpc.rpc import peer_host

from .conftest import GrpcServer, StartServer

KEY = "0123456789abcdef"
ROUTE = "/inference.GRPCInferenceService/ModelInfer"


def infer_message() -> bytes:
    request = ModelInferRequest(model_name="painted")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(encode(plain(200, 40)))
    return request.SerializeToString()


def status_of(error: grpc.RpcError) -> Status:
    trailers = dict(error.trailing_metadata())
    return Status.FromString(trailers["grpc-status-details-bin"])


def test_keys_are_needed_except_for_probes(start_grpc_server: StartServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    server = start_grpc_server(ColourEngine(), api_keys_file=keys)
    for method in ("ModelInfer", "ServerMetadata", "RepositoryIndex", "LogSettings"):
        error = server.error(method)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "API key" in error.details()
        assert server.error(method, metadata=[("x-api-key", KEY[:-1])]).code() is error.code()
    for metadata in ([("authorization", f"Bearer {KEY}")], [("x-api-key", KEY)]):
        assert server.call("ModelInfer", infer_message(), metadata=metadata)
    assert server.client.is_server_live()
    assert server.client.is_server_ready()
    request = health_pb2.HealthCheckRequest().SerializeToString()
    assert server.call("/grpc.health.v1.Health/Check", request)


def test_rate_limit_states_when_to_return(start_grpc_server: StartServer) -> None:
    server = start_grpc_server(ColourEngine(), rate_limit_per_s=0.01, rate_limit_burst=2)
    for _ in range(2):
        server.call("ServerMetadata")
    error = server.error("ServerMetadata", metadata=[("x-request-id", "the-third")])
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_of(error)
    assert (status.code, status.message) == (8, error.details())
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("RATE_LIMITED", "centernet-serving")
    assert info.metadata["request_id"] == "the-third"
    assert 1 <= retry.retry_delay.seconds <= 100
    assert server.client.is_server_live(), "probes have no limit"


def test_the_limit_holds_for_all_protocols_together(start_grpc_server: StartServer) -> None:
    server = start_grpc_server(ColourEngine(), rate_limit_per_s=0.01, rate_limit_burst=2)
    server.call("ServerMetadata")
    assert server.http.client.get("/models").status_code == 200
    assert server.http.client.get("/models").status_code == 429
    assert server.error("ServerMetadata").code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_addresses_of_clients_behind_a_trusted_proxy(start_grpc_server: StartServer) -> None:
    server = start_grpc_server(
        ColourEngine(), rate_limit_per_s=0.01, rate_limit_burst=1, trusted_proxies="127.0.0.1"
    )
    for client in ("10.0.0.1", "10.0.0.2", "10.9.9.9, 10.0.0.3"):
        metadata = [("x-forwarded-for", client)]
        server.call("ServerMetadata", metadata=metadata)
        error = server.error("ServerMetadata", metadata=metadata)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # The address beside the proxy counts, not the one that the client has made up.
    assert server.error("ServerMetadata", metadata=[("x-forwarded-for", "10.0.0.3")])


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:50000", "127.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1"),
        ("ipv6:[::1]:50000", "::1"),
        ("unix:", "unix:"),
    ],
)
def test_addresses_of_peers(peer: str, host: str) -> None:
    assert peer_host(peer) == host


def test_metrics_and_log_line_of_an_rpc(
    grpc_server: GrpcServer, caplog: pytest.LogCaptureFixture
) -> None:
    def count(status: str) -> float:
        return grpc_server.http.metric(
            "centernet_http_requests_total", route=ROUTE, method="POST", status=status
        )

    before = count("200"), count("400")
    errors = grpc_server.http.metric("centernet_request_errors_total", code="bad_image")
    with caplog.at_level(logging.INFO, "service.access"):
        _, rpc = grpc_server.channel.unary_unary(ROUTE).with_call(
            infer_message(), timeout=30, metadata=[("x-request-id", "mine")]
        )
        assert ("x-request-id", "mine") in rpc.trailing_metadata()
        bad = ModelInferRequest(model_name="painted")
        tensor = bad.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"\xff\xd8\xff\xe0 no image")
        error = grpc_server.error("ModelInfer", bad.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (count("200"), count("400")) == (before[0] + 1, before[1] + 1)
    assert grpc_server.http.metric("centernet_request_errors_total", code="bad_image") == errors + 1
    done, failed = (vars(record)["fields"] for record in caplog.records)
    assert done["request_id"] == "mine"
    assert (done["route"], done["status"], done["model"]) == (ROUTE, 200, "painted")
    assert done["client"] == "127.0.0.1"
    assert done["batch_size"] >= 1
    assert {"read", "queue", "infer"} <= set(done["stages_ms"])
    assert (failed["status"], failed["code"]) == (400, "bad_image")


def test_an_unexpected_error_is_logged_and_not_shown(
    start_grpc_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_grpc_server(ColourEngine())
    detector = server.http.state.loader.models.get("painted")
    del detector.detector  # every inference fails
    error = server.error("ModelInfer", infer_message(), metadata=[("x-request-id", "broken")])
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "see the log" in error.details()
    assert "attribute" not in error.details()
    assert "request broken: unexpected error" in caplog.text


def test_a_span_continues_the_trace_of_the_client(
    start_grpc_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from service.observability.tracing import Tracing

    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("service.app.open_tracing", lambda _: tracing)
    server = start_grpc_server(ColourEngine())
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    metadata = [("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")]
    server.call("ModelInfer", infer_message(), metadata=metadata)
    server.http.stop()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    span = spans[f"POST {ROUTE}"]
    assert f"{span.context.trace_id:032x}" == trace_id
    assert span.attributes["centernet.model"] == "painted"
    assert spans["infer"].parent.span_id == span.context.span_id
