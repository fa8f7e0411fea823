"""The compared servers: installation, configurations, start, pause and stop.

Each third-party server is a directory with ``server.py`` and ``requirements.txt`` and runs in its
own virtual environment. All configurations that are tried are listed in this file.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.comparison.ceiling import SCORE_TOLERANCE
from benchmarks.cpu import CPU_ENGINES
from benchmarks.load import Target

HERE = Path(__file__).parent
READY_S = 180.0
STOP_S = 20.0
_STARTS = 3
"""Attempts: pytriton's instances time out after one second, which may happen on a busy machine."""
_BOUNDARY = "field-that-no-jpeg-contains"

DEFAULT = "centernet-serving"
"""This service with its default settings."""
FULL_DECODE = "centernet-serving-full-decode"
"""This service with ``scaled_decoding`` off: JPEGs are decoded at full size, as by all others."""
WORKERS = "centernet-serving-workers"
"""This service with ``--workers``, as many as there are cores."""
MINIMAL = "minimal"
"""``minimal_server.py``: a reference point, not a service."""
OWN = (DEFAULT, FULL_DECODE, WORKERS)
"""This service."""
LOCAL = (*OWN, MINIMAL)
"""Servers that run from this checkout, in the current environment."""


class ServerError(RuntimeError):
    """A server did not start or did not respond as expected."""


@dataclass(frozen=True)
class Configuration:
    """The configuration of a server; see ``Settings`` in ``shared/detector.py``."""

    workers: int
    threads: int
    batch_size: int
    wait_ms: float
    variant: str = ""

    def __str__(self) -> str:
        parts = [self.variant] if self.variant else []
        if self.workers:
            parts.append(f"{self.workers} workers of {self.threads} threads")
        if self.batch_size > 1:
            parts.append(f"batch {self.batch_size}, wait {self.wait_ms:g} ms")
        return ", ".join(parts)


@dataclass(frozen=True)
class Server:
    """A compared server: its start command, request format and response format."""

    name: str
    configurations: Sequence[Configuration]
    path: str
    command: Callable[[int], Sequence[str]]
    detections: Callable[[bytes], list[dict[str, Any]]] = lambda body: _detections(json.loads(body))
    form_field: str | None = None
    """Name of the file field of a multipart form; None if the body is the image itself."""
    headers: Sequence[str] = ("Content-Type: image/jpeg",)
    score_tolerances: Mapping[str, float] = field(
        default_factory=lambda: {"fp32": SCORE_TOLERANCE, "bf16": SCORE_TOLERANCE}
    )
    """Accepted differences of scores from those of the bare pipeline, by precision."""
    environment: Mapping[str, str] | None = None
    min_matched_fraction: float = 0.95
    """Required fraction of matching detections, per image, compared with the bare pipeline."""
    can_pause: bool = True
    """False for servers that treat a pause as a failure; they are left idle between their turns."""


def _script(_: int) -> list[str]:
    return ["python", "server.py"]


def _detections(document: Any) -> list[dict[str, Any]]:
    return list(document["detections"])


def _triton_detections(body: bytes) -> list[dict[str, Any]]:
    # Triton's response to a raw binary request: a JSON header, a four-byte length, our JSON.
    _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    return _detections(json.loads(body[end + 4 :]))


# For two cores, the documentation of the servers suggests two workers with one thread or one worker
# with two; batch delays are a fraction of an engine run. A further variant is tried where the
# documentation describes a second way to write the server.
SERVERS = {
    server.name: server
    for server in (
        # No configuration is tuned: default settings except for scaled_decoding and workers.
        Server(FULL_DECODE, [Configuration(0, 0, 0, 0, "full decode")], "/detect", lambda _: []),
        # Detections are not verified: networks with random weights detect other objects in JPEGs
        # decoded at a fraction of their size. docs/measurements/image_decoding.md evaluates the
        # effect with trained networks.
        Server(
            DEFAULT,
            [Configuration(0, 0, 0, 0, "defaults")],
            "/detect",
            lambda _: [],
            min_matched_fraction=0.0,
        ),
        Server(
            WORKERS,
            [Configuration(2, 1, 1, 0)],
            "/detect",
            lambda _: [],
            min_matched_fraction=0.0,
        ),
        Server(MINIMAL, [Configuration(0, 0, 8, 0), Configuration(0, 0, 4, 0)], "/", lambda _: []),
        Server(
            "plain",
            [Configuration(1, 1, 1, 0), Configuration(2, 1, 1, 0), Configuration(1, 2, 1, 0)],
            "/detect",
            _script,
        ),
        Server(
            "litserve",
            [
                Configuration(2, 1, 8, 5),
                Configuration(2, 1, 4, 1),
                Configuration(2, 1, 8, 5, "fast_queue"),
            ],
            "/predict",
            _script,
            form_field="image",
        ),
        Server(
            "bentoml",
            [
                Configuration(2, 1, 8, 60_000),
                Configuration(1, 2, 8, 60_000),
                Configuration(3, 1, 8, 60_000),
            ],
            "/detect",
            lambda port: ["bentoml", "serve", "server:Detect", "--port", str(port), "-q"],
            detections=lambda body: _detections(json.loads(body)[0]),
            form_field="images",
            environment={"BENTOML_DO_NOT_TRACK": "True"},
        ),
        Server(
            "ray_serve",
            [Configuration(2, 1, 8, 5), Configuration(1, 2, 8, 5), Configuration(2, 1, 4, 1)],
            "/detect",
            _script,
            environment={
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_MODE": "disabled",
                # By default the workers run with niceness 15, below all other processes.
                "RAY_worker_niceness": "0",
            },
        ),
        Server(
            "mosec",
            [
                Configuration(2, 1, 8, 5, "staged"),
                Configuration(2, 1, 8, 5, "single"),
                Configuration(1, 2, 8, 5, "staged"),
            ],
            "/inference",
            lambda port: ["python", "server.py", "--port", str(port), "--timeout", "30000"],
        ),
        Server(
            "triton",
            [
                Configuration(2, 1, 8, 1),
                Configuration(2, 1, 8, 1, "decoding_pool"),
                Configuration(1, 2, 8, 1, "decoding_pool"),
            ],
            "/v2/models/detect/infer",
            _script,
            detections=_triton_detections,
            # The interpolation of OpenCV 4 (see its requirements) differs slightly from OpenCV 5;
            # the scores differ by up to 0.003 in fp32 and, because other pixels are rounded to
            # other bf16 values, 0.03 in bf16.
            score_tolerances={"fp32": 0.005, "bf16": 0.03},
            headers=(
                "Content-Type: application/octet-stream",
                "Inference-Header-Content-Length: 0",
            ),
            # Triton considers Python instances that are paused for a turn as crashed.
            can_pause=False,
        ),
    )
}


def prepare_environment(server: Server, environments: Path) -> Path:
    """Create the virtual environment of a server unless it is up to date; return its Python."""
    if server.name in LOCAL:
        return Path(sys.executable)
    requirements = HERE / server.name / "requirements.txt"
    texts = [requirements.read_text(), (HERE / "shared" / "requirements.txt").read_text()]
    environment = environments / server.name
    python, installed = environment / "bin" / "python", environment / "installed"
    if installed.exists() and installed.read_text() == "".join(texts):
        return python
    print(f"installing {server.name} into {environment}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", str(requirements)], check=True)
    installed.write_text("".join(texts))
    return python


def write_bodies(server: Server, images: Sequence[Path], folder: Path) -> list[Path]:
    """Return the files with the request bodies: the images, or multipart forms with them."""
    if server.form_field is None:
        return list(images)
    folder.mkdir(parents=True, exist_ok=True)
    bodies = []
    for image in images:
        head = (
            f"--{_BOUNDARY}\r\nContent-Disposition: form-data; "
            f'name="{server.form_field}"; filename="{image.name}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        body = folder / f"{image.stem}.form"
        body.write_bytes(head.encode() + image.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode())
        bodies.append(body)
    return bodies


class RunningServer:
    """A started server and the target for its requests."""

    def __init__(
        self, target: Target, process: "subprocess.Popen[bytes]", *, can_pause: bool
    ) -> None:
        self.target = target
        self._process = process
        self._can_pause = can_pause

    def pause(self) -> None:
        """Suspend all processes (SIGSTOP) if the server tolerates it."""
        if self._can_pause:
            self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume all processes (SIGCONT)."""
        self._send(signal.SIGCONT)

    @contextmanager
    def resumed(self) -> Iterator[Target]:
        """Resume a paused server for the duration of the block."""
        self.resume()
        try:
            yield self.target
        finally:
            self.pause()

    def stop(self) -> None:
        """Send SIGTERM; then kill all remaining descendant processes."""
        self.resume()
        started = _descendants(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, started_at in started.items():
            # Compare start times, because the process id may have been reused.
            if _started_at(pid) == started_at:
                _kill(pid, signal.SIGKILL)

    def is_ready(self) -> bool:
        """Wait until the server responds; return whether it did within ``READY_S``."""
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(ServerError):
                send_request(self.target, self.target.bodies[0])
                return True
            time.sleep(0.25)
        return False

    def _send(self, number: signal.Signals) -> None:
        for pid in (self._process.pid, *_descendants(self._process.pid)):
            _kill(pid, number)


@contextmanager
def run_server(
    server: Server,
    configuration: Configuration,
    engine: str,
    python: Path,
    model: Path,
    bodies: Sequence[Path],
    logs: Path,
) -> Iterator[RunningServer]:
    """Start ``server``, yield it once it responds, and stop it at the end.

    ``engine``: one of :data:`benchmarks.cpu.CPU_ENGINES`.

    Raises :class:`ServerError` if it does not start.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{server.name}.log"
    for attempt in range(1, _STARTS + 1):
        port = _free_port()
        process = _launch(server, configuration, engine, python, model, port, log)
        form = f"Content-Type: multipart/form-data; boundary={_BOUNDARY}"
        headers = server.headers if server.form_field is None else (form,)
        target = Target(port, server.path, bodies, headers)
        running = RunningServer(target, process, can_pause=server.can_pause)
        try:
            if running.is_ready():
                yield running
                return
        finally:
            running.stop()
        print(f"{server.name} did not start (attempt {attempt}); see {log}", file=sys.stderr)
    raise ServerError(
        f"{server.name} ({configuration}) did not start in {_STARTS} attempts; see {log}"
    )


def _launch(
    server: Server,
    configuration: Configuration,
    engine: str,
    python: Path,
    model: Path,
    port: int,
    log: Path,
) -> "subprocess.Popen[bytes]":
    # Programs of the virtual environment come first; files written to $HOME stay with the logs.
    environment = dict(os.environ)
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    with log.open("ab") as output:
        if server.name in LOCAL:
            command = [str(python), *_local_command(server, configuration, engine, model, port)]
            environment["PYTHONPATH"] = str(HERE.parents[1])
            return subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        backend, precision = CPU_ENGINES[engine]
        environment["HOME"] = str(log.parent.absolute())
        environment["PYTHONPATH"] = str(HERE / "shared")
        environment |= {
            "SERVER_MODEL": str(model.absolute()),
            "SERVER_PORT": str(port),
            "SERVER_BACKEND": backend,
            "SERVER_PRECISION": precision,
            "SERVER_WORKERS": str(configuration.workers),
            "SERVER_THREADS": str(configuration.threads),
            "SERVER_BATCH_SIZE": str(configuration.batch_size),
            "SERVER_WAIT_MS": str(configuration.wait_ms),
            "SERVER_VARIANT": configuration.variant,
        }
        environment |= server.environment or {}
        return subprocess.Popen(
            server.command(port),
            cwd=HERE / server.name,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _local_command(
    server: Server, configuration: Configuration, engine: str, model: Path, port: int
) -> list[str]:
    """Return the arguments of Python that start a server of this checkout."""
    if server.name == MINIMAL:
        return [
            *("-m", "benchmarks.comparison.minimal_server", str(model)),
            *("--port", str(port), "--batch-size", str(configuration.batch_size)),
            *("--engine", engine),
        ]
    backend, precision = CPU_ENGINES[engine]
    return [
        *("-c", "from service.cli import main; main()", "--models", str(model)),
        *("--port", str(port), "--scaled-decoding", str(server.name != FULL_DECODE).lower()),
        *("--workers", str(max(1, configuration.workers))),
        *("--backend", backend, "--precision", precision),
        # No access log, as with the other servers.
        *("--log-level", "warning"),
    ]


def send_request(target: Target, body: Path) -> bytes:
    """Send one request and return the body of the response. Raises :class:`ServerError`."""
    headers = dict(header.split(": ", 1) for header in target.headers)
    url = f"http://127.0.0.1:{target.port}{target.path}"
    request = urllib.request.Request(url, body.read_bytes(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return bytes(response.read())
    except OSError as error:
        detail = error.read()[:300] if isinstance(error, urllib.error.HTTPError) else b""
        raise ServerError(f"{url}: {error} {detail!r}") from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _descendants(pid: int) -> dict[int, str]:
    """Return all descendants of ``pid`` with their start times."""
    descendants: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                descendants[child] = _started_at(child)
                descendants |= _descendants(child)
    return descendants


def _started_at(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The process name may contain any character and ends at the last ")"; field 22 is starttime.
    return re.sub(r".*\) ", "", stat, flags=re.DOTALL).split()[19]
