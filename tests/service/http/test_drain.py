"""Graceful shutdown: the effect of SIGTERM and SIGINT on requests to a real server."""

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


def test_accepts_requests_during_the_drain_delay_until_a_second_signal(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(ColourEngine(), drain_delay_s=600)
    response = post(server)
    assert (response.status_code, response.headers.get("Connection")) == (200, None)
    server.stop()
    wait_until(lambda: server.client.get("/readyz").status_code == 503)
    assert server.client.get("/readyz").json()["code"] == "stopping"
    assert server.client.get("/livez").status_code == 200
    response = post(server)
    assert response.status_code == 200
    assert response.headers["Connection"] == "close", "the client must open a new connection"
    server.stop()
    wait_until(lambda: is_gone(server))


def test_admitted_requests_complete_and_their_connections_close(
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
        responses = [future.result(20) for future in accepted]
    assert [response.status_code for response in responses] == [200] * 3
    assert {response.headers["Connection"] for response in responses} == {"close"}


def test_responds_503_to_a_request_that_exceeds_the_shutdown_timeout(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.LAST_RUN_S", 0.1)
    engine = GatedEngine()
    server = start_server(engine, shutdown_timeout_s=1)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(post, server)
        assert engine.entered.acquire(timeout=10)
        server.stop()
        response = accepted.result(20)
        engine.gate.set()
    assert (response.status_code, response.json()["code"]) == (503, "stopping")


COLOUR_MODEL = serving("    return one_model(ColourEngine())(settings, metrics)")


def connect_and_send(port: int, count: int, clients: ExitStack) -> list[socket.socket]:
    """Send one image on each of ``count`` connections, which the kernel accepts for the server."""
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(IMAGE)}\r\n\r\n"
    connections = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        connections.append(clients.enter_context(client))
        client.sendall(head.encode() + IMAGE)
    return connections


def test_connections_from_before_the_signal_are_served_by_a_delayed_process() -> None:
    with serve_process(COLOUR_MODEL) as service, ExitStack() as clients:
        service.wait_for("/readyz")
        service.process.send_signal(signal.SIGSTOP)
        connections = connect_and_send(service.client.base_url.port or 0, 8, clients)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(1)  # longer than every delay between the signal and the end
        service.process.send_signal(signal.SIGCONT)
        assert [client.recv(12) for client in connections] == [b"HTTP/1.1 200"] * 8


def test_connections_during_a_delayed_shutdown_are_served(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_delayed, have_sent = threading.Event(), threading.Event()
    on_tick = Server.on_tick

    async def delayed(self: Server, counter: int) -> bool:
        ends = await on_tick(self, counter)
        if ends:
            is_delayed.set()
            have_sent.wait(10)
        return ends

    monkeypatch.setattr(Server, "on_tick", delayed)
    server = start_server(ColourEngine())
    server.stop()
    with ExitStack() as clients:
        assert is_delayed.wait(10)
        connections = connect_and_send(server.client.base_url.port or 0, 8, clients)
        have_sent.set()
        assert [client.recv(12) for client in connections] == [b"HTTP/1.1 200"] * 8


HANGING = serving(
    """
    class HangingEngine(ColourEngine):
        def run(self, images, flip=False):
            threading.Event().wait()
    return one_model(HangingEngine())(settings, metrics)
"""
)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_engine_that_hangs_does_not_keep_the_process_alive(stop: signal.Signals) -> None:
    options = ("--shutdown-timeout-s", "1")
    with serve_process(HANGING, *options, stderr=subprocess.PIPE) as service:
        service.wait_for("/readyz")
        responses: list[httpx.Response] = []
        client = threading.Thread(
            target=lambda: responses.append(service.client.post("/detect", content=IMAGE))
        )
        client.start()
        gauge = 'centernet_queue_inputs{model="painted",version="1"} 1.0'
        with httpx.Client(base_url=service.client.base_url) as other:
            wait_until(lambda: gauge in other.get("/metrics").text)
        service.process.send_signal(stop)
        _, text = service.process.communicate(timeout=20)
        client.join(20)
    assert service.process.returncode == (-stop if stop == signal.SIGTERM else 128 + stop)
    assert [response.json()["code"] for response in responses] == ["stopping"]
    assert "an engine run has not ended" in text.decode()
    assert "Traceback" not in text.decode()
