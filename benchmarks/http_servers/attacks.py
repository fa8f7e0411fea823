"""Malformed, oversized and slow requests, and what can be observed of a server under them."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.http_clients import run_nginx
from benchmarks.http_servers.servers import Running, Server, run

MIB = 2**20
CLOSE_S = 8.0
"""Seconds within which a server must close after the last byte of a flood."""
IDLE_CLOSE_S = 25.0
"""Seconds within which a server must close a connection on which nothing arrives."""
_BLOCKED_S = 5.0
"""Seconds without progress after which the server does not read any more."""


@dataclass(frozen=True)
class Flood:
    """A request of ``blocks`` without an end."""

    name: str
    start: str
    block: bytes
    size: int

    def head(self, server: Server) -> bytes:
        """The bytes before the blocks."""
        return self.start.replace("PATH", server.path).encode()


CHUNKED = "POST PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
FLOODS = (
    Flood("trailers", CHUNKED + "0\r\n", b"a:b\r\n" * 13_000, 16 * MIB),
    Flood("chunk extension", CHUNKED + "5;", b"x" * 65_000, 64 * MIB),
    Flood("head", "GET PATH HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 65_000, 64 * MIB),
    Flood("chunks of one byte", CHUNKED, b"1\r\nx\r\n" * 10_000, 16 * MIB),
    Flood("pipelined requests", "", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000, 64 * MIB),
)


@dataclass(frozen=True)
class FloodResult:
    """``memory_mib``: largest increase. ``cpu_s``: CPU time. ``ended``: what the server did."""

    memory_mib: float
    cpu_s: float
    sent_mib: float
    ended: str


def flood(server: Server, attack: Flood) -> FloodResult:
    """Run one attack against a server that is started for it."""
    with run(server) as running, _connect(running) as connection, _peak(running) as peak:
        cpu_s = running.cpu_s()
        sent, refused = _send(connection, attack.head(server), attack.block, attack.size)
        ended = "closed" if refused else _end(connection, CLOSE_S)
        if ended == "open" and sent < attack.size:
            ended = "open, not read"
        time.sleep(0.2)
        return FloodResult(peak(), running.cpu_s() - cpu_s, sent / MIB, ended)


def _send(connection: socket.socket, head: bytes, block: bytes, size: int) -> tuple[int, bool]:
    """Send up to ``size`` bytes; return how many, and True if the server closed the connection."""
    connection.settimeout(_BLOCKED_S)
    connection.sendall(head)
    sent = 0
    try:
        while sent < size:
            sent += connection.send(block[sent % len(block) :])
    except TimeoutError:
        return sent, False
    except OSError:
        return sent, True
    return sent, False


def _end(connection: socket.socket, seconds: float) -> str:
    """Wait until the server closes; return ``closed`` or ``open``."""
    until = time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(MIB):
                return "closed"
    except TimeoutError:
        return "open"
    except OSError:
        return "closed"
    return "open"


def slow_head(server: Server, running: Running) -> str:
    """An incomplete head, of which a byte arrives each second."""
    with _connect(running) as connection:
        connection.sendall(f"GET {server.path} HTTP/1.1\r\nX: ".encode())
        return _close_time(connection, send_each_second=True)


def idle_after_error(server: Server, running: Running) -> str:
    """An early response, one more byte of the body, and nothing else."""
    with _connect(running) as connection:
        head = f"POST {server.refused} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode())
        connection.settimeout(1)
        with suppress(TimeoutError):  # nginx reads the body first
            connection.recv(65536)
        connection.sendall(b"x")
        return _close_time(connection)


def upgrade_with_body(server: Server, running: Running) -> str:
    """A body in a request that offers HTTP/2, as Java's HttpClient sends."""
    with _connect(running) as connection:
        connection.settimeout(10)
        connection.sendall(
            f"POST {server.path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 5\r\n\r\n"
            "image".encode()
        )
        try:
            received = part = connection.recv(65536)
            while part and not received.endswith(b"}"):  # of the JSON body
                part = connection.recv(65536)
                received += part
        except OSError:
            return "no response"
        if not received:
            return "no response"
        return "lost" if b"empty_body" in received else "read"


def refused_while_sending(server: Server, running: Running, requests: int = 20) -> str:
    """Bodies of 8 MiB to an endpoint that responds without reading them."""
    readable = 0
    for number in range(requests):
        field = "Connection: close" if number % 2 else f"X-Number: {number}"
        head = f"POST {server.refused} HTTP/1.1\r\nHost: x\r\n{field}\r\n"
        with _connect(running) as connection, suppress(OSError):
            connection.sendall(f"{head}Content-Length: {8 * MIB}\r\n\r\n".encode())
            connection.sendall(bytes(8 * MIB))
            readable += b" 4" in connection.recv(64)
    return f"{readable} of {requests}"


def refused_through_nginx(server: Server, running: Running, requests: int = 50) -> str:
    """The same through nginx, whose response is always readable: 413 or another error, or 502."""
    refused = 0
    with TemporaryDirectory() as folder, run_nginx([running.port], Path(folder)) as (port, process):
        proxy = Running(port, (process,))
        for _ in range(requests):
            with _connect(proxy) as connection:
                head = f"POST {server.refused} HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MIB}"
                connection.sendall(head.encode() + b"\r\n\r\n" + bytes(8 * MIB))
                refused += b" 4" in connection.recv(64)
    return f"{refused} of {requests}"


def _close_time(connection: socket.socket, send_each_second: bool = False) -> str:
    started_at = time.monotonic()
    while time.monotonic() - started_at < IDLE_CLOSE_S:
        if _end(connection, 1.0) == "closed":
            return f"after {time.monotonic() - started_at:.0f} s"
        if send_each_second:
            try:
                connection.sendall(b"x")
            except OSError:
                return f"after {time.monotonic() - started_at:.0f} s"
    return f"open after {IDLE_CLOSE_S:.0f} s"


def _connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=10)


@contextmanager
def _peak(running: Running) -> Iterator[Callable[[], float]]:
    """Sample the memory; the function returns its largest increase in MiB."""
    idle = running.memory_mib()
    highest = [idle]
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(0.02):
            highest[0] = max(highest[0], running.memory_mib())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: highest[0] - idle
    finally:
        stopped.set()
        thread.join()


CONVERSATIONS: Iterable[tuple[str, Callable[[Server, Running], str]]] = (
    ("slow head", slow_head),
    ("idle after an early response", idle_after_error),
    ("body of a request that offers h2c", upgrade_with_body),
    ("413 read by a client that sends 8 MiB", refused_while_sending),
    ("413, not 502, through nginx", refused_through_nginx),
)
