"""Malformed, too long and slow request heads, and coalesced writes of responses."""

import asyncio
import json
import socket
from collections.abc import Callable

import pytest
from support.serving import ColourEngine, RunningServer

from service.http import uvicorn_server as server_module


def exchange(running: RunningServer, sent: bytes) -> tuple[str, dict[str, str], bytes]:
    """Send bytes; return status line, headers and body received until the server disconnects."""
    url = running.client.base_url
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return status, dict(field.lower().split(": ", 1) for field in fields), body


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # start of a TLS handshake
        b"GET /livez HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
def test_malformed_requests_get_a_problem_document(server: RunningServer, sent: bytes) -> None:
    before = server.metric("centernet_request_errors_total", code="malformed_request")
    status, headers, body = exchange(server, sent)
    assert status == "HTTP/1.1 400 Bad Request"
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    problem = json.loads(body)
    assert problem["code"] == "malformed_request"
    assert problem["request_id"] == headers["x-request-id"]
    after = server.metric("centernet_request_errors_total", code="malformed_request")
    assert after == before + 1


def test_a_head_that_is_too_long_gets_a_problem_document(server: RunningServer) -> None:
    status, _, body = exchange(server, b"GET /livez HTTP/1.1\r\nX: " + b"x" * 70_000)
    assert status == "HTTP/1.1 400 Bad Request"
    assert "65536 bytes" in json.loads(body)["detail"]


def test_a_slow_head_gets_408_and_an_idle_connection_is_closed(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAD_TIMEOUT_S", 0.05)
    running = start_server(ColourEngine())
    status, _, body = exchange(running, b"GET /livez HTTP/1.1\r\nHost:")
    assert status == "HTTP/1.1 408 Request Timeout"
    assert json.loads(body)["code"] == "slow_head"
    assert exchange(running, b"")[0] == ""
    requests = (
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nConnection: close\r\n\r\n"
    )
    assert exchange(running, requests)[0].endswith("OK")


def test_the_head_timeout_applies_to_keep_alive_connections(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAD_TIMEOUT_S", 0.05)
    running = start_server(ColourEngine())
    _, _, body = exchange(running, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HT")
    assert b"HTTP/1.1 408 Request Timeout" in body


class RecordingTransport:
    """Transport that records writes and closing."""

    def __init__(self) -> None:
        self.calls: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.calls


def test_head_and_body_of_a_response_are_sent_together() -> None:
    transport = RecordingTransport()

    async def respond() -> None:
        coalescing = server_module._CoalescingTransport(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
        for part in (b"head, ", b"body"):
            coalescing.write(part)
        assert transport.calls == []
        await asyncio.sleep(0)
        coalescing.write(b"the last")
        coalescing.close()
        assert coalescing.is_closing()
        await asyncio.sleep(0)

    asyncio.run(respond())
    assert transport.calls == [b"head, body", b"the last", "closed"]
