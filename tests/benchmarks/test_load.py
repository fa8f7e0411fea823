"""The load generator, tested with servers that send predefined responses."""

import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import LoadError, Target, closed_loop, open_loop, parse_report

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the load generator needs g++")

BODIES = (b"first", b"second body", b"x" * 300_000)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: Counter[bytes]
    lock: threading.Lock
    respond: Callable[["Handler", int], None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            self.received[body] += 1
            number = self.received.total()
        try:
            type(self).respond(self, number)
        except OSError:
            self.close_connection = True

    def reply(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "2", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None: ...


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def serve(
    respond: Callable[[Handler, int], None], tmp_path: Path
) -> Iterator[tuple[Target, Counter[bytes]]]:
    received: Counter[bytes] = Counter()
    attributes = {"respond": respond, "received": received, "lock": threading.Lock()}
    server = HttpServer(("127.0.0.1", 0), type("TestHandler", (Handler,), attributes))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    files = []
    for index, body in enumerate(BODIES):
        files.append(tmp_path / str(index))
        files[-1].write_bytes(body)
    try:
        yield Target(server.server_port, "/detect", files), received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def always_ok(handler: Handler, _: int) -> None:
    handler.reply(200)


def test_closed_loop_sends_the_bodies_in_turn_and_counts_the_responses(tmp_path: Path) -> None:
    records = tmp_path / "records"
    with serve(always_ok, tmp_path) as (target, received):
        load = closed_loop(target, 0.5, 3, records=records)
    assert set(received) == set(BODIES)
    assert max(received.values()) - min(received.values()) <= 1
    assert load.all_ok
    assert load.max_connections == 3
    # Requests in flight at the end do not count.
    assert received.total() - 3 <= load.completed <= received.total()
    assert load.images_per_second == pytest.approx(load.completed / 0.5)
    assert len(records.read_text().splitlines()) == load.completed


def test_several_paths_are_requested_in_turn_with_every_body(tmp_path: Path) -> None:
    requests: Counter[tuple[str, int]] = Counter()

    def respond(handler: Handler, _: int) -> None:
        requests[handler.path, int(handler.headers["Content-Length"])] += 1
        handler.reply(200)

    with serve(respond, tmp_path) as (target, _):
        load = closed_loop(replace(target, path="/a", other_paths=["/b"]), 0.5, 1)
    assert load.all_ok
    assert {path for path, _ in requests} == {"/a", "/b"}
    assert len(requests) == 2 * len(BODIES)
    assert max(requests.values()) - min(requests.values()) <= 1


def test_percentiles_match_the_records(tmp_path: Path) -> None:
    records = tmp_path / "records"

    def respond(handler: Handler, number: int) -> None:
        time.sleep(0.002 * (number % 7))
        handler.reply(200)

    with serve(respond, tmp_path) as (target, _):
        load = open_loop(target, 1.0, 300, records=records)
    latencies = np.loadtxt(records, delimiter=",")[:, 1]
    assert load.ok is not None
    assert load.ok.count == len(latencies) == load.sent
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9)):
        expected = np.percentile(latencies, percent, method="inverted_cdf")
        assert getattr(load.ok.latency_ms, name) == pytest.approx(expected, abs=1e-3)
    assert load.ok.latency_ms.mean == pytest.approx(latencies.mean(), abs=1e-3)
    assert load.ok.latency_ms.max == pytest.approx(latencies.max(), abs=1e-3)


def test_arrivals_are_poisson_and_depend_only_on_the_seed(tmp_path: Path) -> None:
    def arrivals(seed: int, respond: Callable[[Handler, int], None]) -> np.ndarray:
        records = tmp_path / f"records_{seed}"
        with serve(respond, tmp_path) as (target, _):
            open_loop(target, 1.0, 500, seed=seed, records=records)
        return np.sort(np.loadtxt(records, delimiter=",")[:, 0])

    def slow(handler: Handler, number: int) -> None:
        time.sleep(0.01 * (number % 3))
        handler.reply(200)

    first = arrivals(1, always_ok)
    np.testing.assert_array_equal(first, arrivals(1, slow))
    assert not np.array_equal(first[:50], arrivals(2, always_ok)[:50])
    # A fixed sample of 500: the standard error of its mean and standard deviation is 4.5 %.
    gaps = np.diff(first)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.15)
    assert gaps.std() == pytest.approx(1 / 500, rel=0.15)


def test_latency_is_measured_from_the_scheduled_time(tmp_path: Path) -> None:
    """No coordinated omission: a stall delays all requests scheduled during it."""
    records = tmp_path / "records"

    def stall_once(handler: Handler, number: int) -> None:
        if number == 1:
            time.sleep(0.5)
        handler.reply(200)

    with serve(stall_once, tmp_path) as (target, received):
        load = open_loop(target, 0.5, 200, connections=1, records=records)
    scheduled_s, latency_ms, _ = np.loadtxt(records, delimiter=",").T
    assert load.max_connections == 1
    assert received.total() == load.sent == load.completed
    # No response arrives before the end of the stall, which began with the first request.
    assert np.all(scheduled_s + latency_ms / 1000 >= scheduled_s.min() + 0.5)
    assert load.ok is not None
    assert load.ok.latency_ms.p50 > 100


def test_statuses_and_retry_after_are_reported_separately(tmp_path: Path) -> None:
    def respond(handler: Handler, number: int) -> None:
        if number % 2:
            handler.reply(200)
        else:
            handler.reply(429, {"Retry-After": str(number % 3 + 1)} if number % 4 else None)

    with serve(respond, tmp_path) as (target, received):
        load = open_loop(target, 0.5, 200)
    total = received.total()
    assert load.statuses[200].count == (total + 1) // 2
    assert load.statuses[429].count == total // 2
    assert load.statuses[200].retry_after is None
    retry_after = load.statuses[429].retry_after
    assert retry_after is not None
    assert retry_after.count == sum(number % 4 == 2 for number in range(1, total + 1))
    assert (retry_after.min_s, retry_after.max_s) == (1, 3)
    assert not load.all_ok


def test_requests_without_a_response_time_out(tmp_path: Path) -> None:
    def send_nothing(handler: Handler, _: int) -> None:
        handler.connection.recv(1)
        handler.close_connection = True

    with serve(send_nothing, tmp_path) as (target, _):
        load = open_loop(target, 0.3, 50, timeout_s=0.2)
    assert load.timeouts == load.sent > 0
    assert load.completed == 0
    assert load.ok is None
    assert load.images_per_second == 0


def test_a_fraction_of_the_clients_disconnects(tmp_path: Path) -> None:
    records = tmp_path / "records"

    def respond_late(handler: Handler, _: int) -> None:
        time.sleep(0.3)
        handler.reply(200)

    with serve(respond_late, tmp_path) as (target, _):
        load = open_loop(
            target, 0.5, 200, disconnect_fraction=0.5, disconnect_after_s=0.05, records=records
        )
    assert load.disconnected + load.completed == load.sent
    assert 0.3 < load.disconnected / load.sent < 0.7
    statuses = np.loadtxt(records, delimiter=",")[:, 2]
    assert Counter(statuses) == {200: load.completed, -2: load.disconnected}


def test_closed_connections_are_reopened_or_count_as_failures(tmp_path: Path) -> None:
    def respond(handler: Handler, number: int) -> None:
        if number % 3 == 0:
            handler.close_connection = True  # without a response
        else:
            # Announces a keep-alive connection, but closes it.
            handler.reply(200)
            handler.close_connection = number % 3 == 2

    with serve(respond, tmp_path) as (target, _):
        load = open_loop(target, 0.5, 100, connections=1)
    assert load.completed + load.failures == load.sent
    assert load.failures > 0
    assert load.completed > 0


def test_chunked_responses_and_responses_without_a_length_are_complete(tmp_path: Path) -> None:
    def respond(handler: Handler, number: int) -> None:
        handler.send_response(200)
        if number % 2:
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            for part in (b"3\r\nabc\r\n", b"0\r\n", b"\r\n"):
                handler.wfile.write(part)
                handler.wfile.flush()
                time.sleep(0.002)
        else:
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(b"no length")
            handler.close_connection = True

    with serve(respond, tmp_path) as (target, received):
        load = open_loop(target, 0.5, 100)
    assert load.all_ok
    assert load.completed == load.sent == received.total()


def test_raises_if_the_server_refuses_connections_or_a_body_is_missing(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # without listening
        with pytest.raises(LoadError, match="did not respond"):
            closed_loop(Target(listener.getsockname()[1], "/", [body]), 1.0, 1)
    with pytest.raises(LoadError, match="cannot read"):
        closed_loop(Target(1, "/", [tmp_path / "missing"]), 1.0, 1)


def test_parses_the_report_of_the_generator() -> None:
    latency = dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "p999", "max"), 2.0)
    counts = ("sent", "timeouts", "failures", "disconnected", "retried", "max_connections")
    report = dict.fromkeys(counts, 0) | {
        "loop": "open",
        "seconds": 4.0,
        "completed": 9,
        "max_dispatch_delay_ms": 0.1,
        "cpu_s": 0.04,
        "cpu_share": 0.01,
        "statuses": {
            "200": {"count": 8, "latency_ms": latency, "retry_after": None},
            "429": {
                "count": 1,
                "latency_ms": latency,
                "retry_after": {"count": 1, "min_s": 1, "max_s": 2},
            },
        },
    }
    load = parse_report(json.dumps(report))
    assert load.images_per_second == 2.0
    assert not load.all_ok
    assert load.statuses[429].retry_after is not None
