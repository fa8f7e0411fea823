"""A service in a process of its own that reports its resources, and its clients.

python -m benchmarks.hostile_inputs.live_service  # started by LiveService
"""

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.hostile_inputs.bounds import Measurement, memory_bytes
from benchmarks.hostile_inputs.grpc_requests import ordinary_rpc
from benchmarks.hostile_inputs.http_requests import JPEG
from service.app import create_app
from service.cli import make_loader
from service.grpc_port import reserved_grpc_port
from service.http.uvicorn_server import Server
from service.observability.metrics import Metrics
from service.settings import Settings

PACKAGE = Path(__file__).parents[2] / "models" / "blood_cells"
INTERNAL_ERROR = "which is not caused by the request; see the log"
"""Part of the text of unexpected errors."""
_QUIET_S = 0.5
"""Time without bytes after which a client that got a response, or will get none, disconnects."""
_CLIENT_S = 20.0
_START_S = 120.0


class LiveService:
    """A running service; a context manager that starts and stops it.

    ``is_grpc``: the inputs are sent to its port for gRPC.
    """

    def __init__(self, *, is_grpc: bool = False) -> None:
        self._is_grpc = is_grpc

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hostile_inputs.live_service"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "CENTERNET_LOG_LEVEL": "error"},
        )
        http_port, grpc_port = map(int, self._line().split())
        self._port = grpc_port if self._is_grpc else http_port
        url = f"http://127.0.0.1:{http_port}"
        self._client = httpx.Client(base_url=url, timeout=_CLIENT_S)
        deadline = time.monotonic() + _START_S
        while True:
            with suppress(httpx.TransportError):
                if self._client.get("/readyz").status_code == 200:
                    return self
            if time.monotonic() > deadline:
                raise TimeoutError(f"the service was not ready within {_START_S:g} s")
            time.sleep(0.2)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        self._process.kill()
        with self._process:  # closes its pipes and waits for its end
            pass

    def send(self, bodies: list[bytes]) -> Measurement:
        """Send all ``bodies``, each on a connection of its own, and an ordinary request after them.

        The outcome is the status of the first response to each of them, separated by spaces. It is
        an error if one is 500, or if the ordinary request, or one over gRPC, is not answered.
        """
        before = self._report()
        statuses = asyncio.run(self._exchange(bodies))
        ordinary = self._client.post(
            "/detect", content=JPEG, headers={"Content-Type": "image/jpeg"}
        )
        rpcs = asyncio.run(self._exchange([ordinary_rpc()])) if self._is_grpc else []
        after = self._report()
        error = None
        if rpcs not in ([], ["200"]):
            error = f"an ordinary RPC got {rpcs[0]}"
        elif ordinary.status_code != 200:
            error = f"an ordinary request got {ordinary.status_code}"
        elif "500" in statuses:
            error = "a response with the status 500"
        return Measurement(
            " ".join(statuses),
            after["cpu_s"] - before["cpu_s"],
            after["peak_bytes"] - before["idle_bytes"],
            after["event_loop_s"],
            error,
        )

    async def _exchange(self, bodies: list[bytes]) -> list[str]:
        return await asyncio.gather(*(self._send_one(body) for body in bodies))

    async def _send_one(self, body: bytes) -> str:
        """Send in one to four pieces; return the status of the first response."""
        received = b""
        rng = Random(len(body))
        cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(4)))
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLIENT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
                        writer.write(body[start:end])
                        await writer.drain()
                        await asyncio.sleep(0)
                    async with asyncio.timeout(_QUIET_S) as quiet:
                        while part := await reader.read(1 << 16):
                            received += part
                            quiet.reschedule(asyncio.get_running_loop().time() + _QUIET_S)
                finally:
                    writer.close()
        return _grpc_status(received) if self._is_grpc else _http_status(received)

    def _report(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        report: dict[str, float] = json.loads(self._line())
        return report

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConnectionError(f"the service ended with status {self._process.wait()}")
        return line


def _http_status(received: bytes) -> str:
    status = received[9:12].decode(errors="replace")
    return status if received.startswith(b"HTTP/") else "none"


def _grpc_status(received: bytes) -> str:
    """Return the HTTP status that stands for the first status of gRPC, or its number.

    gRPC sends the first occurrence of a header as plain text. The status INTERNAL (13) of gRPC
    itself, such as for data that cannot be decompressed, is no error of the service.
    """
    found = re.search(rb"grpc-status.(\d+)", received, re.DOTALL)
    code = found[1].decode() if found else "none"
    if code == "13" and INTERNAL_ERROR.encode() in received:
        return "500"
    return {"0": "200", "none": "none"}.get(code, f"gRPC_{code}")


class _Observed(Server):
    """A server that measures the longest CPU time between two timers of its event loop."""

    event_loop_s = 0.0

    async def startup(self, *arguments: Any, **options: Any) -> None:
        """Listen, print the port and measure from then on."""
        await super().startup(*arguments, **options)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(port, self._settings.grpc_port, flush=True)
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now_s = time.thread_time()
            self.event_loop_s = max(self.event_loop_s, now_s - last_s)
            last_s = now_s


def main() -> None:
    """Serve, and write a line of JSON for each line on standard input."""
    given = Settings(models=PACKAGE, port=0, grpc_port=0, log_level="error")
    with reserved_grpc_port(given) as settings:
        _serve(settings)


def _serve(settings: Settings) -> None:
    metrics = Metrics()
    server = _Observed(create_app(make_loader(settings, metrics), settings, metrics), settings)

    def report() -> None:
        for _ in sys.stdin:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            peak_bytes = memory_bytes("self", "VmHWM")
            Path("/proc/self/clear_refs").write_text("5")
            values = {
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_bytes": peak_bytes,
                "idle_bytes": memory_bytes("self", "VmRSS"),
                "event_loop_s": server.event_loop_s,
            }
            server.event_loop_s = 0.0
            print(json.dumps(values), flush=True)
        os._exit(0)  # the parent has ended

    threading.Thread(target=report, daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
