"""Traces: trace context of the caller, spans of requests and batches, export."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id
from starlette.datastructures import Headers
from support.images import encode, plain
from support.serving import ColourEngine, RunningServer, wait_until

from service.observability.request_record import RequestRecord
from service.observability.tracing import (
    Tracing,
    TracingUnavailableError,
    open_tracing,
    read_trace_context,
)
from service.settings import Settings

IMAGE = encode(plain(1, 2))
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
STAGES = ["read", "decode_queue", "prepare", "queue", "infer", "postprocess"]
StartServer = Callable[..., RunningServer]


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_reads_the_trace_parent(header: str, sampled: bool) -> None:
    headers = Headers({"traceparent": header, "tracestate": "a=1"})
    context = read_trace_context(headers)
    assert context is not None
    assert (format_trace_id(context.trace_id), format_span_id(context.span_id)) == (TRACE, SPAN)
    assert (context.trace_flags.sampled, context.trace_state.to_header()) == (sampled, "a=1")


@pytest.mark.parametrize(
    "header",
    [
        *("", "x" * 5000, PARENT.upper(), PARENT + "-more", PARENT[:-1], f"ff{PARENT[2:]}"),
        *(f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-zz"),
    ],
)
def test_ignores_invalid_trace_parents(header: str) -> None:
    assert read_trace_context(Headers({"traceparent": header})) is None


def test_ignores_two_trace_parents() -> None:
    raw = [(b"traceparent", PARENT.encode())] * 2
    assert read_trace_context(Headers(raw=raw)) is None


@pytest.mark.parametrize("state", ["forged line", "a=1," + "x" * 600])
def test_an_invalid_trace_state_is_dropped_and_not_logged(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    context = read_trace_context(Headers({"traceparent": PARENT, "tracestate": state}))
    assert context is not None
    assert not context.trace_state
    assert not caplog.records


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced_server(
    start_server: StartServer, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> RunningServer:
    spans = Tracing(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("service.app.open_tracing", lambda _: spans)
    return start_server(ColourEngine())


def spans_of(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """Wait for and return the spans of one request, which end after its response was sent."""
    while True:
        spans = {span.name: span for span in exporter.get_finished_spans()}
        if "POST /detect" in spans:
            return spans
        time.sleep(0.01)


def test_a_request_is_a_span_in_the_trace_of_its_caller(
    traced_server: RunningServer, exporter: InMemorySpanExporter
) -> None:
    before_ns = time.time_ns()
    traced_server.client.post("/detect", content=IMAGE, headers={"traceparent": PARENT})
    spans = spans_of(exporter)
    batch = spans.pop("batch")
    assert set(spans) == {*STAGES, "POST /detect"}
    request = spans["POST /detect"]
    assert [link.context for link in batch.links] == [request.context]
    assert request.parent is not None
    assert request.context is not None
    assert format(request.parent.span_id, "016x") == SPAN
    assert {format(span.context.trace_id, "032x") for span in spans.values()} == {TRACE}  # type: ignore[union-attr]
    times = [before_ns, request.start_time]
    for stage in STAGES:
        assert spans[stage].parent is not None
        assert spans[stage].parent.span_id == request.context.span_id  # type: ignore[union-attr]
        times += [spans[stage].start_time, spans[stage].end_time]
    times += [request.end_time, time.time_ns()]
    rounded = [(at or 0) // 1000 for at in times]
    assert rounded == sorted(rounded), "stages follow each other inside the request"
    attributes = dict(request.attributes or {})
    assert attributes["http.route"] == "/detect"
    assert attributes["http.response.status_code"] == 200
    assert attributes["centernet.batch_size"] == 1
    assert attributes["centernet.model"] == "painted"
    assert request.resource.attributes["service.name"] == "centernet-serving"


def test_without_a_parent_a_new_trace_starts_and_its_id_is_logged(
    traced_server: RunningServer, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    traced_server.client.post("/detect", content=b"no image")
    request = spans_of(exporter)["POST /detect"]
    assert request.parent is None
    assert request.context is not None
    (line,) = [record for record in caplog.records if record.name == "service.access"]
    assert line.fields["trace_id"] == format(request.context.trace_id, "032x")  # type: ignore[attr-defined]
    assert dict(request.attributes or {})["error.type"] == "unsupported_image"
    assert request.status.is_unset, "an error of the client is not an error of the server"


def test_follows_the_sampling_of_the_caller_and_never_traces_probes(
    traced_server: RunningServer, exporter: InMemorySpanExporter
) -> None:
    traced_server.client.post("/detect", content=IMAGE, headers={"traceparent": PARENT[:-1] + "0"})
    for path in ("/livez", "/readyz", "/metrics"):
        traced_server.client.get(path, headers={"traceparent": PARENT})
    assert exporter.get_finished_spans() == ()


def test_the_span_of_a_batch_links_to_its_requests(exporter: InMemorySpanExporter) -> None:
    spans = Tracing(SimpleSpanProcessor(exporter))
    records = [RequestRecord(f"r{number}", "client") for number in range(2)]
    for record in records:
        spans.begin(record)
    began_at, seconds = records[0].started_at, 0.25
    spans.batch("painted", [*records, records[0], None], began_at, seconds, trigger="full")
    spans.batch("painted", [None], began_at, seconds)
    (batch,) = exporter.get_finished_spans()
    assert [link.context for link in batch.links] == [
        record.span.get_span_context() for record in records
    ]
    assert batch.parent is None
    assert dict(batch.attributes or {}) == {
        **{"centernet.model": "painted", "centernet.batch_size": 4, "trigger": "full"}
    }
    assert batch.end_time is not None
    assert batch.start_time is not None
    assert batch.end_time - batch.start_time == 250_000_000
    assert abs(batch.start_time - records[0].started_at_ns) < 60e9


def test_an_error_in_tracing_fails_no_request(
    traced_server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("opentelemetry.sdk.trace.Tracer.start_span", broken)
    assert traced_server.client.post("/detect", content=IMAGE).status_code == 200
    wait_until(lambda: "a span could not be recorded" in caplog.text)


class Receiver(HTTPServer):
    """OTLP/HTTP receiver that responds while its gate is open."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ReceiverHandler)
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.gate = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class ReceiverHandler(BaseHTTPRequestHandler):
    """Handler that stores the bodies and paths of the requests."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        self.server.paths.append(self.path)
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.gate.wait(20)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


def test_exports_spans_to_a_receiver(start_server: StartServer, receiver: Receiver) -> None:
    receiver.gate.set()
    running = start_server(ColourEngine(), otlp_endpoint=receiver.endpoint)
    running.client.post("/detect", content=IMAGE, headers={"traceparent": PARENT})
    running.stop()  # exports the remaining spans
    while not receiver.bodies:
        time.sleep(0.01)
    assert receiver.paths[0] == "/v1/traces"
    sent = ExportTraceServiceRequest.FromString(receiver.bodies[0])
    (resource,) = sent.resource_spans
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {*STAGES, "POST /detect", "batch"}
    assert {span.trace_id.hex() for span in spans if span.name != "batch"} == {TRACE}


def test_a_hanging_or_missing_receiver_fails_no_request(
    start_server: StartServer,
    receiver: Receiver,
    unused_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.observability.tracing._STOP_TIMEOUT_S", 0.1)
    # Milliseconds, so that spans are exported during the requests.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    for endpoint in (receiver.endpoint, unused_endpoint):
        running = start_server(ColourEngine(), otlp_endpoint=endpoint)
        for _ in range(20):
            assert running.client.post("/detect", content=IMAGE).status_code == 200
        running.stop()
    assert len(receiver.paths) == 1, "one export has begun, and hangs"


@pytest.fixture
def unused_endpoint() -> str:
    with HTTPServer(("127.0.0.1", 0), ReceiverHandler) as closed:
        return f"http://127.0.0.1:{closed.server_port}"


def test_tracing_is_disabled_without_an_endpoint() -> None:
    assert open_tracing(Settings()) is None


def test_a_missing_extra_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingUnavailableError, match=r"centernet-serving\[otel\]"):
        open_tracing(Settings(otlp_endpoint="http://localhost:4318"))
