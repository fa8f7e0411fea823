"""Starting and pausing each server, and asking it one question.

A peer is a directory with ``server.py`` and ``requirements.txt``. It runs in an environment of its
own; the tunings that are tried are listed here, so that they can be evaluated in one place.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Target
from benchmarks.peers.ceiling import SCORE_TOLERANCE

HERE = Path(__file__).parent
READY_S = 180.0
STOP_S = 20.0
_STARTS = 3
"""pytriton gives its instances one second to find each other, which a busy machine may miss."""
_FORM = "field-that-no-jpeg-contains"


LEAST = "least"
OWN = ("local", "ours_scaled", LEAST)
"""What runs from this checkout, in its environment."""


class ServerError(RuntimeError):
    """A server did not start, or did not answer as it should."""


@dataclass(frozen=True)
class Tuning:
    """How one server is set up; see ``shared/detector.py``."""

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
    """One contestant: how to start it, what to send and where its detections are."""

    name: str
    tunings: Sequence[Tuning]
    path: str
    command: Callable[[int], Sequence[str]]
    detections: Callable[[bytes], list[dict[str, Any]]] = lambda body: _found(json.loads(body))
    form_field: str | None = None
    """Name of the file in a form; None: the body is the file."""
    headers: Sequence[str] = ("Content-Type: image/jpeg",)
    score_tolerance: float = SCORE_TOLERANCE
    environment: Mapping[str, str] | None = None
    least_match: float = 0.95
    """Share of the detections of each image that must be those of the pipeline alone."""
    can_pause: bool = True
    """One that takes a pause for a fault is left idle between its turns."""


def _script(_: int) -> list[str]:
    return ["python", "server.py"]


def _found(answer: Any) -> list[dict[str, Any]]:
    return list(answer["detections"])


def _triton_detections(body: bytes) -> list[dict[str, Any]]:
    # To a raw request Triton answers in its binary form: a JSON head, four bytes of length, ours.
    _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    return _found(json.loads(body[end + 4 :]))


# Two cores: two workers of one thread, or one of two, are what their pages on CPUs lead to; waits
# are a fraction of an engine run. One more variant where the documentation has a second shape.
SERVERS = {
    server.name: server
    for server in (
        # No tuning: what the settings are by default, but for whole images, like everybody else.
        Server("local", [Tuning(0, 0, 0, 0, "whole images")], "/detect", lambda _: []),
        # Images of which the network needs a part of the pixels only. Random networks find other
        # things in them; docs/measurements/image_decoding.md evaluates that with trained ones.
        Server(
            "ours_scaled",
            [Tuning(0, 0, 0, 0, "defaults")],
            "/detect",
            lambda _: [],
            least_match=0.0,
        ),
        # Not a service, but how much of the ceiling one would leave.
        Server(LEAST, [Tuning(0, 0, 8, 0), Tuning(0, 0, 4, 0)], "/", lambda _: []),
        Server(
            "plain",
            [Tuning(1, 1, 1, 0), Tuning(2, 1, 1, 0), Tuning(1, 2, 1, 0)],
            "/detect",
            _script,
        ),
        Server(
            "litserve",
            [Tuning(2, 1, 8, 5), Tuning(2, 1, 4, 1), Tuning(2, 1, 8, 5, "fast_queue")],
            "/predict",
            _script,
            form_field="image",
        ),
        Server(
            "bentoml",
            [Tuning(2, 1, 8, 60_000), Tuning(1, 2, 8, 60_000), Tuning(3, 1, 8, 60_000)],
            "/detect",
            lambda port: ["bentoml", "serve", "server:Detect", "--port", str(port), "-q"],
            detections=lambda body: _found(json.loads(body)[0]),
            form_field="images",
            environment={"BENTOML_DO_NOT_TRACK": "True"},
        ),
        Server(
            "ray_serve",
            [Tuning(2, 1, 8, 5), Tuning(1, 2, 8, 5), Tuning(2, 1, 4, 1)],
            "/detect",
            _script,
            environment={
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_MODE": "disabled",
                # By default its workers run at niceness 15, below everything else on the machine.
                "RAY_worker_niceness": "0",
            },
        ),
        Server(
            "mosec",
            [
                Tuning(2, 1, 8, 5, "staged"),
                Tuning(2, 1, 8, 5, "single"),
                Tuning(1, 2, 8, 5, "staged"),
            ],
            "/inference",
            lambda port: ["python", "server.py", "--port", str(port), "--timeout", "30000"],
        ),
        Server(
            "triton",
            [
                Tuning(2, 1, 8, 1),
                Tuning(2, 1, 8, 1, "decoding_pool"),
                Tuning(1, 2, 8, 1, "decoding_pool"),
            ],
            "/v2/models/detect/infer",
            _script,
            detections=_triton_detections,
            # OpenCV 4 (see its requirements) interpolates a little otherwise than OpenCV 5.
            score_tolerance=0.005,
            headers=(
                "Content-Type: application/octet-stream",
                "Inference-Header-Content-Length: 0",
            ),
            # It takes its Python instances for dead when they have been still for so long.
            can_pause=False,
        ),
    )
}


def prepare_environment(server: Server, environments: Path) -> Path:
    """Install a peer into an environment of its own, unless that was done; return its python."""
    if server.name in OWN:
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


def bodies_for(server: Server, images: Sequence[Path], folder: Path) -> list[Path]:
    """Files with what is sent for each image: the image, or a form around it."""
    if server.form_field is None:
        return list(images)
    folder.mkdir(parents=True, exist_ok=True)
    bodies = []
    for image in images:
        head = (
            f"--{_FORM}\r\nContent-Disposition: form-data; "
            f'name="{server.form_field}"; filename="{image.name}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        body = folder / f"{image.stem}.form"
        body.write_bytes(head.encode() + image.read_bytes() + f"\r\n--{_FORM}--\r\n".encode())
        bodies.append(body)
    return bodies


class Running:
    """A server that has answered, and where to send what."""

    def __init__(
        self, target: Target, process: "subprocess.Popen[bytes]", *, can_pause: bool
    ) -> None:
        self.target = target
        self._process = process
        self._can_pause = can_pause

    def pause(self) -> None:
        """Stop its processes as they are, if it bears that, so that others have the machine."""
        if self._can_pause:
            self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._send(signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[Target]:
        """Let a paused server go on for a while."""
        self.resume()
        try:
            yield self.target
        finally:
            self.pause()

    def end(self) -> None:
        """SIGTERM, then the end of every process that it started and left behind."""
        self.resume()
        started = _descendants(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, started_at in started.items():
            # The number may be somebody else's by now: the time of its start tells.
            if _started_at(pid) == started_at:
                _kill(pid, signal.SIGKILL)

    def is_ready(self) -> bool:
        """Whether it answers within the time that it has to start."""
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(ServerError):
                ask(self.target, self.target.bodies[0])
                return True
            time.sleep(0.25)
        return False

    def _send(self, number: signal.Signals) -> None:
        for pid in (self._process.pid, *_descendants(self._process.pid)):
            _kill(pid, number)


@contextmanager
def running(
    server: Server, tuning: Tuning, python: Path, model: Path, bodies: Sequence[Path], logs: Path
) -> Iterator[Running]:
    """Start ``server`` and give it once it answers; stop all of it at the end.

    Raises :class:`ServerError`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{server.name}.log"
    for attempt in range(1, _STARTS + 1):
        port = _free_port()
        process = _launch(server, tuning, python, model, port, log)
        form = f"Content-Type: multipart/form-data; boundary={_FORM}"
        headers = server.headers if server.form_field is None else (form,)
        target = Target(port, server.path, bodies, headers)
        started = Running(target, process, can_pause=server.can_pause)
        try:
            if started.is_ready():
                yield started
                return
        finally:
            started.end()
        print(f"{server.name} did not start (attempt {attempt}); see {log}", file=sys.stderr)
    raise ServerError(f"{server.name} ({tuning}) did not start in {_STARTS} attempts; see {log}")


def _launch(
    server: Server, tuning: Tuning, python: Path, model: Path, port: int, log: Path
) -> "subprocess.Popen[bytes]":
    # Programs of the environment are found first; state that peers keep at home stays with the log.
    environment = dict(os.environ)
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    with log.open("ab") as output:
        if server.name in OWN:
            command = [str(python), *_own_command(server, tuning, model, port)]
            environment["PYTHONPATH"] = str(HERE.parents[1])
            return subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        environment["HOME"] = str(log.parent.absolute())
        environment["PYTHONPATH"] = str(HERE / "shared")
        environment |= {
            "PEER_MODEL": str(model.absolute()),
            "PEER_PORT": str(port),
            "PEER_WORKERS": str(tuning.workers),
            "PEER_THREADS": str(tuning.threads),
            "PEER_BATCH_SIZE": str(tuning.batch_size),
            "PEER_WAIT_MS": str(tuning.wait_ms),
            "PEER_VARIANT": tuning.variant,
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


def _own_command(server: Server, tuning: Tuning, model: Path, port: int) -> list[str]:
    """What of this checkout is started, and with which options."""
    if server.name == LEAST:
        return [
            *("-m", "benchmarks.peers.least", str(model)),
            *("--port", str(port), "--batch-size", str(tuning.batch_size)),
        ]
    return [
        *("-c", "from service.cli import main; main()", "--models", str(model)),
        *("--port", str(port), "--scaled-decoding", str(server.name == "ours_scaled").lower()),
        # The others write no line for each request.
        *("--log-level", "warning"),
    ]


def ask(target: Target, body: Path) -> bytes:
    """Send one body; return the answer. Raises :class:`ServerError`."""
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
    """Every process below ``pid`` and when each was started."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found[child] = _started_at(child)
                found |= _descendants(child)
    return found


def _started_at(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name may hold anything but its closing bracket is the last one; field 22 is the start.
    return re.sub(r".*\) ", "", stat, flags=re.DOTALL).split()[19]
