"""What SIGTERM does to requests, over a real server."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from support.images import encode, plain
from support.processes import serve_process, serving
from support.serving import ColourEngine, GatedEngine, RunningServer, wait_until

from service.http.uvicorn_server import Server

IMAGE = encode(plain(200, 40))


def post(server: RunningServer) -> httpx.Response:
    return server.client.post("/detect", content=IMAGE)


def is_gone(server: RunningServer) -> bool:
    try:
        httpx.get(f"{server.url}/livez", timeout=5)
    except httpx.TransportError:
        return True
    return False


def test_requests_are_taken_during_the_delay_and_a_second_signal_ends_it(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(ColourEngine(), drain_delay_s=600)
    answer = post(server)
    assert (answer.status_code, answer.headers.get("Connection")) == (200, None)
    server.stop()
    wait_until(lambda: server.client.get("/readyz").status_code == 503)
    assert server.client.get("/readyz").json()["code"] == "stopping"
    assert server.client.get("/livez").status_code == 200
    answer = post(server)
    assert answer.status_code == 200
    assert answer.headers["Connection"] == "close", "the client is sent elsewhere"
    server.stop()
    wait_until(lambda: is_gone(server))


def test_what_was_admitted_is_answered_and_the_connection_closed(
    start_server: Callable[..., RunningServer],
) -> None:
    engine = GatedEngine()
    server = start_server(engine, max_batch_size=1)
    with ThreadPoolExecutor(3) as clients:
        accepted = [clients.submit(post, server) for _ in range(3)]
        wait_until(lambda: server.metric("centernet_queue_inputs", model="painted") == 3)
        server.stop()
        wait_until(lambda: is_gone(server))
        engine.gate.set()
        answers = [future.result(20) for future in accepted]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.headers["Connection"] for answer in answers} == {"close"}


def test_a_request_that_outlasts_the_shutdown_is_told_so(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.LAST_RUN_S", 0.1)
    engine = GatedEngine()
    server = start_server(engine, shutdown_timeout_s=1)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        server.stop()
        answer = accepted.result(20)
        engine.gate.set()
    assert (answer.status_code, answer.json()["code"]) == (503, "stopping")


COLOURS = serving("    return one_model(ColourEngine())(settings, metrics)")


def connect_and_ask(port: int, many: int, clients: ExitStack) -> list[socket.socket]:
    """Send an image each on connections of their own, which the kernel takes for the server."""
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(IMAGE)}\r\n\r\n"
    asking = []
    for _ in range(many):
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        asking.append(clients.enter_context(client))
        client.sendall(head.encode() + IMAGE)
    return asking


def test_whoever_connected_before_the_signal_is_answered_however_late_the_process_is() -> None:
    with serve_process(COLOURS) as service, ExitStack() as clients:
        service.wait_for("/readyz")
        service.process.send_signal(signal.SIGSTOP)
        asking = connect_and_ask(service.client.base_url.port or 0, 8, clients)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(1)  # longer than anything that happens between the signal and the end
        service.process.send_signal(signal.SIGCONT)
        assert [client.recv(12) for client in asking] == [b"HTTP/1.1 200"] * 8


def test_whoever_connects_while_the_loop_is_late_to_end_is_answered(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_late, have_asked = threading.Event(), threading.Event()
    on_tick = Server.on_tick

    async def late(self: Server, counter: int) -> bool:
        ends = await on_tick(self, counter)
        if ends:
            is_late.set()
            have_asked.wait(10)
        return ends

    monkeypatch.setattr(Server, "on_tick", late)
    server = start_server(ColourEngine())
    server.stop()
    with ExitStack() as clients:
        assert is_late.wait(10)
        asking = connect_and_ask(server.client.base_url.port or 0, 8, clients)
        have_asked.set()
        assert [client.recv(12) for client in asking] == [b"HTTP/1.1 200"] * 8


HANGING = serving(
    """
    class Hanging(ColourEngine):
        def run(self, images, flip=False):
            threading.Event().wait()
    return one_model(Hanging())(settings, metrics)
"""
)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_engine_that_hangs_does_not_keep_the_process_alive(stop: signal.Signals) -> None:
    options = ("--shutdown-timeout-s", "1")
    with serve_process(HANGING, *options, stderr=subprocess.PIPE) as service:
        service.wait_for("/readyz")
        answers: list[httpx.Response] = []
        client = threading.Thread(
            target=lambda: answers.append(service.client.post("/detect", content=IMAGE))
        )
        client.start()
        gauge = 'centernet_queue_inputs{model="painted"} 1.0'
        with httpx.Client(base_url=service.client.base_url) as other:
            wait_until(lambda: gauge in other.get("/metrics").text)
        service.process.send_signal(stop)
        _, text = service.process.communicate(timeout=20)
        client.join(20)
    assert service.process.returncode == (-stop if stop == signal.SIGTERM else 128 + stop)
    assert [answer.json()["code"] for answer in answers] == ["stopping"]
    assert "an engine run has not ended" in text.decode()
    assert "Traceback" not in text.decode()
