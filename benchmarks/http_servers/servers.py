"""How each server is started, with its own limits where it has options for them."""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.endurance.service import BUNDLED, PROJECT
from benchmarks.http_clients import run_nginx
from benchmarks.http_servers.app import KEEP_ALIVE_S

HEAD_TIMEOUT_S = 15
APP = "benchmarks.http_servers.app:app"
_START_S = 120.0


@dataclass(frozen=True)
class Server:
    """A server; ``needs`` is the Python module of it.

    ``path`` accepts a body, ``refused`` is answered before the body is read.
    """

    name: str
    needs: str
    command: Callable[[int], list[str]]
    behind_nginx: bool = False
    path: str = "/"
    refused: str = "/refused"

    @property
    def is_installed(self) -> bool:
        """True if the server can run here."""
        has_proxy = not self.behind_nginx or shutil.which("nginx") is not None
        return has_proxy and importlib.util.find_spec(self.needs) is not None


@dataclass(frozen=True)
class Running:
    """A running server: its port and its processes."""

    port: int
    processes: tuple["subprocess.Popen[bytes]", ...]

    def memory_mib(self) -> float:
        """Return the resident memory of all its processes."""
        pages = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes."""
        ticks = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _pids(self) -> Iterator[int]:
        waiting = [process.pid for process in self.processes]
        while waiting:
            pid = waiting.pop()
            yield pid
            with contextlib.suppress(OSError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    waiting += map(int, children.read_text().split())


def _uvicorn(http: str) -> Callable[[int], list[str]]:
    return lambda port: [
        *("uvicorn", APP, "--port", str(port), "--http", http, "--log-level", "error"),
        *("--no-access-log", "--timeout-keep-alive", str(KEEP_ALIVE_S)),
    ]


def _bounded(port: int) -> list[str]:
    return ["benchmarks.http_servers.app", str(port)]


def _hypercorn(port: int) -> list[str]:
    return [
        *("hypercorn", APP, "--bind", f"127.0.0.1:{port}", "--worker-class", "uvloop"),
        *("--keep-alive", str(KEEP_ALIVE_S), "--read-timeout", str(HEAD_TIMEOUT_S)),
        *("--log-level", "error"),
    ]


def _granian(port: int) -> list[str]:
    return [
        *("granian", APP, "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)),
        *("--loop", "uvloop", "--http", "1", "--no-ws", "--no-access-log"),
        *("--http1-header-read-timeout", str(1000 * HEAD_TIMEOUT_S)),
        *("--http1-buffer-size", "65536", "--log-level", "error"),
    ]


def _service(port: int) -> list[str]:
    return [
        *("service", "--models", str(BUNDLED), "--port", str(port), "--log-level", "error"),
        *("--keep-alive-s", str(KEEP_ALIVE_S)),
    ]


SERVERS = (
    Server("uvicorn, httptools", "uvicorn", _uvicorn("httptools")),
    Server("uvicorn, this project's protocol", "uvicorn", _bounded),
    Server("uvicorn, h11", "h11", _uvicorn("h11")),
    Server("hypercorn", "hypercorn", _hypercorn),
    Server("granian", "granian", _granian),
    Server("nginx, uvicorn, httptools", "uvicorn", _uvicorn("httptools"), behind_nginx=True),
)
SERVICE = Server("this service", "uvicorn", _service, path="/detect", refused="/detect?nonsense=1")


@contextmanager
def run(server: Server) -> Iterator[Running]:
    """Start a server on a free port, and stop it after the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    }
    process = subprocess.Popen([sys.executable, "-m", *server.command(port)], env=environment)
    with contextlib.ExitStack() as stack:
        stack.callback(_stop, process)
        _wait_until_ready(process, port, "GET /readyz" if server is SERVICE else "POST /")
        if server.behind_nginx:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            nginx_port, nginx = stack.enter_context(run_nginx([port], folder))
            yield Running(nginx_port, (process, nginx))
        else:
            yield Running(port, (process,))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, request: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        ):
            connection.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n".encode())
            connection.sendall(b"Content-Length: 1\r\nConnection: close\r\n\r\nx")
            if connection.recv(64).split()[1:2] == [b"200"]:
                return
        time.sleep(0.1)
    raise RuntimeError("the server did not start")
