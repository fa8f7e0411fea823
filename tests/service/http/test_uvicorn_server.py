"""Malformed, too long and slow request heads, and coalesced writes of responses."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from support.images import encode, plain
from support.serving import ColourEngine, GatedEngine, RunningServer

from service.http import uvicorn_server as server_module


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost"), ("::", "localhost"), ("::1", "[::1]")],
)
def test_the_url_can_be_opened_on_this_machine(host: str, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert server_module.url_of(host, listener) == f"http://{name}:{listener.getsockname()[1]}"


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


def test_a_content_length_with_thousands_of_zeros_is_read(server: RunningServer) -> None:
    head = b"POST /detect HTTP/1.1\r\nConnection: close\r\nContent-Length: " + b"0" * 5000
    assert exchange(server, head + b"3\r\n\r\nabc")[0].startswith("HTTP/1.1 415")
    assert exchange(server, head + b"99999999\r\n\r\n")[0].startswith("HTTP/1.1 413")


def test_a_second_head_on_a_connection_is_counted_alone(server: RunningServer) -> None:
    first = b"POST /livez HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    second = b"GET /livez HTTP/1.1\r\nConnection: close\r\nX: "
    for size, expected in ((40_000, b"HTTP/1.1 200 OK"), (150_000, b"HTTP/1.1 400 Bad Request")):
        status, _, received = exchange(server, first + second + b"x" * size + b"\r\n\r\n")
        assert status == "HTTP/1.1 405 Method Not Allowed"
        assert expected in received


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


CHUNKED = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UNKNOWN_OPTION = b"POST /detect?nonsense=1 HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"


def connect(running: RunningServer) -> socket.socket:
    url = running.client.base_url
    return socket.create_connection((url.host, url.port), timeout=20)


def is_closed_by_server(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("path", [b"/detect?nonsense=1", b"/detect"])
@pytest.mark.parametrize(
    ("start", "block"),
    [
        (b"0\r\n", b"a:b\r\n" * 10_000),  # trailers
        (b"0\r\na:", b"b" * 50_000),  # one trailer
        (b"5;", b"x" * 50_000),  # a chunk extension
        (b"0\r\n\r\n", b"\r\n" * 25_000),  # empty lines before the next request
    ],
)
def test_bytes_that_are_neither_head_nor_body_are_bounded(
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    path: bytes,
    start: bytes,
    block: bytes,
) -> None:
    monkeypatch.setattr(server_module, "DISCARD_TIMEOUT_S", 0.2)
    with connect(server) as connection:
        connection.settimeout(5)
        connection.sendall(
            b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + start
        )
        with suppress(OSError):  # closed by the server
            for _ in range(10):
                connection.sendall(block)
        assert is_closed_by_server(connection)


def test_the_limits_are_checked_after_each_part_of_the_data(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    feed = server_module.BoundedProtocol._feed

    def recorded(protocol: server_module.BoundedProtocol, data: bytes) -> None:
        sizes.append(len(data))
        feed(protocol, data)

    monkeypatch.setattr(server_module.BoundedProtocol, "_feed", recorded)
    body = bytes(2_000_000)
    head = f"POST /detect HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = head.encode() + body
    assert exchange(start_server(ColourEngine()), sent)[0].startswith("HTTP/1.1 415")
    assert sum(sizes) == len(sent)
    assert max(sizes) <= server_module.PARSED_AT_ONCE


def test_the_number_of_tiny_chunks_is_bounded(server: RunningServer) -> None:
    status, _, body = exchange(server, CHUNKED + b"1\r\nx\r\n" * 20_000)
    assert status == "HTTP/1.1 400 Bad Request"
    assert "chunk sizes" in json.loads(body)["detail"]
    image = encode(plain(255, 0))
    chunks = b"".join(b"10\r\n%s\r\n" % image[i : i + 16] for i in range(0, 96, 16))
    rest = b"%x\r\n%s\r\n0\r\n\r\n" % (len(image) - 96, image[96:])
    closing = CHUNKED.replace(b"Host", b"Connection: close\r\nHost")
    assert exchange(server, closing + chunks + rest)[0] == "HTTP/1.1 200 OK"


def test_the_number_of_pipelined_requests_is_bounded(server: RunningServer) -> None:
    sent = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    status, _, received = exchange(server, sent * 100)
    assert status == "HTTP/1.1 200 OK"
    assert received.count(b"HTTP/1.1 200 OK") == 32
    assert b"More than 32 requests" in received.rpartition(b"HTTP/1.1 400 Bad Request")[2]
    _, _, received = exchange(server, sent * 20 + b"GET /livez HTTP/1.0\r\n\r\n")
    assert received.count(b"HTTP/1.1 200 OK") == 20


@pytest.mark.parametrize(
    ("second", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 70_000, 400),
        (b"GET /livez HTT", 408),
        (CHUNKED + b"1\r\nx\r\n" * 20_000, 400),
        (CHUNKED + b"no size", 400),
    ],
)
def test_an_invalid_request_is_answered_after_the_requests_before_it(
    start_server: Callable[..., RunningServer],
    monkeypatch: pytest.MonkeyPatch,
    second: bytes,
    status: int,
) -> None:
    engine = GatedEngine()
    running = start_server(engine)
    image = encode(plain(255, 0))
    first = b"POST /detect HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(image) + image
    with connect(running) as connection:
        connection.sendall(first + b"GET /livez HTTP/1.1\r\n\r\n")
        assert engine.entered.acquire(timeout=20)
        monkeypatch.setattr(server_module, "HEAD_TIMEOUT_S", 0.1)
        connection.sendall(second)
        time.sleep(0.3)
        if status == 400:
            connection.sendall(bytes(1_000_000))  # discarded
        engine.gate.set()
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"200", b"%d" % status]


def test_trailers_are_not_added_to_the_headers(server: RunningServer) -> None:
    sent = b"GET /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    status, headers, _ = exchange(server, sent + b"0\r\nX-Request-ID: trailer\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert headers["x-request-id"] != "trailer"


def test_a_body_that_never_ends_does_not_keep_the_connection_open(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DISCARD_TIMEOUT_S", 0.2)
    with connect(server) as connection:
        connection.settimeout(5)
        connection.sendall(UNKNOWN_OPTION + b"Content-Length: 1000\r\n\r\n")
        assert b" 422 " in connection.recv(65536)
        connection.sendall(b"x")
        assert is_closed_by_server(connection)


def test_empty_lines_do_not_keep_an_idle_connection_open(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(ColourEngine(), keep_alive_s=1)
    with connect(running) as connection:
        connection.settimeout(5)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"\r\n")
        assert is_closed_by_server(connection)


LARGE_RESPONSES = 8 * b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
"""More than 10 MB, which the buffers of the kernel do not hold."""


def test_a_client_that_does_not_read_is_disconnected(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SEND_TIMEOUT_S", 0.3)
    with connect(start_server(ColourEngine())) as connection:
        connection.sendall(LARGE_RESPONSES)
        time.sleep(2)
        received = b"".join(iter(lambda: connection.recv(65536), b""))  # of the kernel's buffers
    assert 1 <= received.count(b"200 OK") < 8


def test_a_client_that_pauses_gets_the_whole_responses(server: RunningServer) -> None:
    with connect(server) as connection:
        connection.sendall(LARGE_RESPONSES + b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
        time.sleep(0.5)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    bundle = server.client.get("/docs/swagger-ui-bundle.js").content
    assert received.count(b"200 OK") == 9
    assert received.count(bundle) == 8


def test_a_response_that_is_not_read_does_not_keep_a_closing_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "SEND_TIMEOUT_S", 0.3)
    transport = RecordingTransport(unsent_bytes=1)

    async def close() -> None:
        loop = asyncio.get_running_loop()
        server_module._Transport(transport, loop, lambda: False).close()  # type: ignore[arg-type]
        await asyncio.sleep(0.5)

    asyncio.run(close())
    assert transport.calls == ["closed", "aborted"]


def test_the_connection_can_be_used_after_an_early_response(server: RunningServer) -> None:
    with connect(server) as connection:
        connection.sendall(UNKNOWN_OPTION + b"Content-Length: 500000\r\n\r\n")
        assert b" 422 " in connection.recv(65536)
        connection.sendall(bytes(500_000) + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)


@pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n"])
def test_a_client_that_sends_a_body_over_the_limit_can_read_the_response(
    start_server: Callable[..., RunningServer], extra: bytes
) -> None:
    running = start_server(ColourEngine(), max_body_bytes=1024)
    for _ in range(5):
        with connect(running) as connection:
            size = 8_000_000
            connection.sendall(
                b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
                + extra
                + b"Content-Length: %d\r\n\r\n" % size
            )
            connection.sendall(bytes(size))
            assert b" 413 " in connection.recv(65536)


def test_a_form_is_parsed_while_it_arrives(server: RunningServer) -> None:
    part = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n'
    with connect(server) as connection:
        connection.sendall(
            b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=B\r\n\r\n" + 2 * part
        )
        received = connection.recv(65536)
        assert b"400 Bad Request" in received
        assert b"Maximum number of files is 1" in received


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_an_offer_to_upgrade_is_ignored(server: RunningServer, offer: bytes, pieces: int) -> None:
    image = encode(plain(255, 0))
    head = (
        b"POST /detect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: " + offer + b"\r\nHTTP2-Settings: AAMAAABk\r\nContent-Type: image/png\r\n"
        b"Content-Length: %d\r\n\r\n" % len(image)
    )
    with connect(server) as connection:
        for _ in range(2):  # the connection stays usable
            sent = head + image
            size = -(-len(sent) // pieces)
            for start in range(0, len(sent), size):
                connection.sendall(sent[start : start + size])
                time.sleep(0.01)
            received = connection.recv(65536)
            assert b"200 OK" in received
            assert b'"detections"' in received


class RecordingTransport:
    """Transport that records writes and closing."""

    def __init__(self, unsent_bytes: int = 0) -> None:
        self.calls: list[bytes | str] = []
        self._unsent_bytes = unsent_bytes

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.calls.append(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def abort(self) -> None:
        self.calls.append("aborted")

    def close(self) -> None:
        self.calls.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.calls


def test_head_and_body_of_a_response_are_sent_together() -> None:
    transport = RecordingTransport()

    async def respond() -> None:
        coalescing = server_module._Transport(transport, asyncio.get_running_loop(), lambda: False)  # type: ignore[arg-type]
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
