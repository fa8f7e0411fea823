"""The load generator against servers whose every answer is known."""

import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import LoadError, Target, closed_loop, open_loop, read_report

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the generator needs g++")

BODIES = (b"first", b"second body", b"x" * 300_000)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: Counter[bytes]
    lock: threading.Lock
    answer: Callable[["Handler", int], None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            self.received[body] += 1
            number = self.received.total()
        try:
            type(self).answer(self, number)
        except OSError:
            self.close_connection = True

    def reply(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "2", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None: ...


class Service(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def serve(
    answer: Callable[[Handler, int], None], tmp_path: Path
) -> Iterator[tuple[Target, Counter[bytes]]]:
    received: Counter[bytes] = Counter()
    attributes = {"answer": answer, "received": received, "lock": threading.Lock()}
    server = Service(("127.0.0.1", 0), type("Answering", (Handler,), attributes))
    thread = threading.Thread(target=server.serve_forever)
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


def test_a_closed_loop_sends_the_bodies_in_turn_and_counts_the_answers(tmp_path: Path) -> None:
    records = tmp_path / "records"
    with serve(always_ok, tmp_path) as (target, received):
        load = closed_loop(target, 0.5, 3, records=records)
    assert set(received) == set(BODIES)
    assert max(received.values()) - min(received.values()) <= 1
    assert load.is_clean
    assert load.most_connections == 3
    # What was under way at the end does not count.
    assert received.total() - 3 <= load.answered <= received.total()
    assert load.images_per_second == pytest.approx(load.answered / 0.5)
    assert len(records.read_text().splitlines()) == load.answered


def test_percentiles_are_those_of_the_records(tmp_path: Path) -> None:
    records = tmp_path / "records"

    def answer(handler: Handler, number: int) -> None:
        time.sleep(0.002 * (number % 7))
        handler.reply(200)

    with serve(answer, tmp_path) as (target, _):
        load = open_loop(target, 1.0, 300, records=records)
    latencies = np.loadtxt(records, delimiter=",")[:, 1]
    assert load.good is not None
    assert load.good.count == len(latencies) == load.sent
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9)):
        expected = np.percentile(latencies, percent, method="inverted_cdf")
        assert getattr(load.good.latency_ms, name) == pytest.approx(expected, abs=1e-3)
    assert load.good.latency_ms.mean == pytest.approx(latencies.mean(), abs=1e-3)
    assert load.good.latency_ms.max == pytest.approx(latencies.max(), abs=1e-3)


def test_arrivals_are_poisson_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def arrivals(seed: int, answer: Callable[[Handler, int], None]) -> np.ndarray:
        records = tmp_path / f"records_{seed}"
        with serve(answer, tmp_path) as (target, _):
            open_loop(target, 1.0, 500, seed=seed, records=records)
        return np.sort(np.loadtxt(records, delimiter=",")[:, 0])

    def slow(handler: Handler, number: int) -> None:
        time.sleep(0.01 * (number % 3))
        handler.reply(200)

    first = arrivals(1, always_ok)
    np.testing.assert_array_equal(first, arrivals(1, slow))
    assert not np.array_equal(first[:50], arrivals(2, always_ok)[:50])
    # One fixed sample: the standard error of its mean and deviation is 4.5 %.
    gaps = np.diff(first)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.15)
    assert gaps.std() == pytest.approx(1 / 500, rel=0.15)


def test_latency_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    """Coordinated omission: one connection waits out a stall, and so do all that came meanwhile."""
    records = tmp_path / "records"

    def stall_once(handler: Handler, number: int) -> None:
        if number == 1:
            time.sleep(0.5)
        handler.reply(200)

    with serve(stall_once, tmp_path) as (target, received):
        load = open_loop(target, 0.5, 200, connections=1, records=records)
    due_s, latency_ms, _ = np.loadtxt(records, delimiter=",").T
    assert load.most_connections == 1
    assert received.total() == load.sent == load.answered
    # Nobody is answered before the stall is over, and it began no earlier than the first was due.
    assert np.all(due_s + latency_ms / 1000 >= due_s.min() + 0.5)
    assert load.good is not None
    assert load.good.latency_ms.p50 > 100


def test_statuses_and_retry_after_are_told_apart(tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
        if number % 2:
            handler.reply(200)
        else:
            handler.reply(429, {"Retry-After": str(number % 3 + 1)} if number % 4 else None)

    with serve(answer, tmp_path) as (target, received):
        load = open_loop(target, 0.5, 200)
    total = received.total()
    assert load.statuses[200].count == (total + 1) // 2
    assert load.statuses[429].count == total // 2
    assert load.statuses[200].retry_after is None
    found = load.statuses[429].retry_after
    assert found is not None
    assert found.count == sum(number % 4 == 2 for number in range(1, total + 1))
    assert (found.min_s, found.max_s) == (1, 3)
    assert not load.is_clean


def test_a_server_that_says_nothing_costs_a_bounded_time(tmp_path: Path) -> None:
    def say_nothing(handler: Handler, _: int) -> None:
        handler.connection.recv(1)
        handler.close_connection = True

    with serve(say_nothing, tmp_path) as (target, _):
        load = open_loop(target, 0.3, 50, timeout_s=0.2)
    assert load.timeouts == load.sent > 0
    assert load.answered == 0
    assert load.good is None
    assert load.images_per_second == 0


def test_a_fraction_of_the_clients_gives_up(tmp_path: Path) -> None:
    records = tmp_path / "records"

    def wait_for_the_end(handler: Handler, _: int) -> None:
        time.sleep(0.3)
        handler.reply(200)

    with serve(wait_for_the_end, tmp_path) as (target, _):
        load = open_loop(
            target, 0.5, 200, disconnect_fraction=0.5, disconnect_after_s=0.05, records=records
        )
    assert load.disconnected + load.answered == load.sent
    assert 0.3 < load.disconnected / load.sent < 0.7
    statuses = np.loadtxt(records, delimiter=",")[:, 2]
    assert Counter(statuses) == {200: load.answered, -2: load.disconnected}


def test_connections_that_end_are_failures_or_are_opened_again(tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
        if number % 3 == 0:
            handler.close_connection = True  # without a word
        else:
            # Says that it keeps the connection, and does not.
            handler.reply(200)
            handler.close_connection = number % 3 == 2

    with serve(answer, tmp_path) as (target, _):
        load = open_loop(target, 0.5, 100, connections=1)
    assert load.answered + load.failures == load.sent
    assert load.failures > 0
    assert load.answered > 0


def test_chunked_answers_and_those_that_end_with_the_connection(tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
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

    with serve(answer, tmp_path) as (target, received):
        load = open_loop(target, 0.5, 100)
    assert load.is_clean
    assert load.answered == load.sent == received.total()


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(LoadError, match="failed to answer"):
            closed_loop(Target(listener.getsockname()[1], "/", [body]), 1.0, 1)
    with pytest.raises(LoadError, match="cannot read"):
        closed_loop(Target(1, "/", [tmp_path / "missing"]), 1.0, 1)


def test_a_report_is_read() -> None:
    latency = dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "p999", "max"), 2.0)
    counts = ("sent", "timeouts", "failures", "disconnected", "retried", "most_connections")
    report = dict.fromkeys(counts, 0) | {
        "loop": "open",
        "seconds": 4.0,
        "answered": 9,
        "latest_dispatch_ms": 0.1,
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
    load = read_report(json.dumps(report))
    assert load.images_per_second == 2.0
    assert not load.is_clean
    assert load.statuses[429].retry_after is not None
