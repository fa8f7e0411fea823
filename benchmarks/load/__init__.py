"""HTTP load generation with closed and open loops; see ``generator.cpp``.

The generator is compiled with g++ on first use. Its CPU time is reported, because it shares the
machine with the server under test.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_name("generator.cpp")
BUILD = Path(__file__).parents[2] / "build" / "load"
_DRAIN_S = 60.0
"""Time that a run may exceed its configured limits on a busy machine."""


class LoadError(RuntimeError):
    """The generator could not be compiled or failed."""


@dataclass(frozen=True)
class Latency:
    """Latency in milliseconds; percentiles by nearest rank."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class RetryAfter:
    """Number and range of ``Retry-After`` headers (in seconds) of the responses with one status."""

    count: int
    min_s: float
    max_s: float


@dataclass(frozen=True)
class Responses:
    """The responses with one status code."""

    count: int
    latency_ms: Latency
    retry_after: RetryAfter | None


@dataclass(frozen=True)
class Load:
    """Result of one run.

    A closed loop counts the responses received within ``seconds``. An open loop counts all requests
    scheduled within ``seconds``, however late the response, and measures latency from the scheduled
    time.
    """

    seconds: float
    sent: int
    completed: int
    """Requests with a complete response of any status."""
    statuses: dict[int, Responses]
    timeouts: int
    failures: int
    """Requests whose connection was refused or closed before the response."""
    disconnected: int
    """Requests that the generator cancelled as configured."""
    retried: int
    """Requests sent again because the server had closed the keep-alive connection."""
    max_connections: int
    """Largest number of simultaneously open connections."""
    max_dispatch_delay_ms: float
    """Largest delay between scheduled and actual dispatch; a high value means CPU starvation."""
    cpu_share: float
    """CPU time of the generator divided by the wall time."""

    @property
    def ok(self) -> Responses | None:
        """The responses with status 200."""
        return self.statuses.get(200)

    @property
    def images_per_second(self) -> float:
        """Responses with status 200 per second."""
        return (self.ok.count if self.ok else 0) / self.seconds

    @property
    def all_ok(self) -> bool:
        """True if every request got status 200."""
        return set(self.statuses) == {200} and not self.timeouts and not self.failures


@dataclass(frozen=True)
class Target:
    """Port, path, headers and bodies of the requests; bodies are files that are sent in turn.

    ``path`` and ``other_paths`` are requested in turn, each with every body.
    """

    port: int
    path: str
    bodies: Sequence[Path]
    headers: Sequence[str] = ("Content-Type: image/jpeg",)
    other_paths: Sequence[str] = ()


class Record(NamedTuple):
    """One request of a run."""

    scheduled_s: float
    """Seconds since the start of the run."""
    latency_ms: float
    status: int
    """HTTP status; 0: failed, -1: timed out, -2: cancelled."""


def closed_loop(
    target: Target,
    seconds: float,
    connections: int,
    *,
    warmup_s: float = 0.0,
    timeout_s: float = 30.0,
    records: Path | None = None,
) -> Load:
    """Send requests on a fixed number of connections, each after the previous response."""
    options = {"connections": connections, "warmup": warmup_s, "timeout": timeout_s}
    return _run(target, seconds, options, records)


def open_loop(
    target: Target,
    seconds: float,
    rate: float,
    *,
    seed: int = 0,
    connections: int = 0,
    warmup_s: float = 0.0,
    timeout_s: float = 30.0,
    disconnect_fraction: float = 0.0,
    disconnect_after_s: float = 0.05,
    records: Path | None = None,
) -> Load:
    """Send requests at Poisson-distributed times, ``rate`` per second, independent of the server.

    ``connections`` limits the number of connections (0: unlimited); the time that a request waits
    for one counts as latency. ``disconnect_fraction`` of the requests are cancelled
    ``disconnect_after_s`` after sending began. ``records`` is a file for :func:`read_records`, with
    one line per request.
    """
    options = {
        "rate": rate,
        "seed": seed,
        "connections": connections,
        "warmup": warmup_s,
        "timeout": timeout_s,
        "disconnect-fraction": disconnect_fraction,
        "disconnect-after": disconnect_after_s,
    }
    return _run(target, seconds, options, records)


def build() -> Path:
    """Compile the generator unless it is up to date; return the path of the program."""
    source = SOURCE.read_bytes()
    program = BUILD / f"generator-{hashlib.sha256(source).hexdigest()[:16]}"
    if program.exists():
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    # Compile to a temporary name: another process may compile at the same time.
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        temporary = Path(directory) / "generator"
        command = [
            "g++",
            "-std=c++20",
            "-O2",
            "-Wall",
            "-Wextra",
            "-o",
            str(temporary),
            str(SOURCE),
        ]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise LoadError("g++, which compiles the load generator, is not installed.") from error
        if result.returncode:
            raise LoadError(f"g++ failed to compile {SOURCE}:\n{result.stderr}")
        temporary.replace(program)
    return program


def _run(target: Target, seconds: float, options: dict[str, Any], records: Path | None) -> Load:
    command = [str(build()), "--port", str(target.port)]
    command += [part for path in (target.path, *target.other_paths) for part in ("--path", path)]
    command += [part for header in target.headers for part in ("--header", header)]
    for name, value in {"seconds": seconds, **options}.items():
        command += [f"--{name}", str(value)]
    if records is not None:
        command += ["--records", str(records)]
    command += [str(body) for body in target.bodies]
    limit_s = options["warmup"] + seconds + options["timeout"] + _DRAIN_S
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"the load generator did not finish within {limit_s:g} s.") from error
    if result.returncode:
        message = f"the load generator exited with status {result.returncode}."
        raise LoadError(result.stderr.strip() or message)
    return parse_report(result.stdout)


def read_records(path: Path) -> list[Record]:
    """Read the requests of a run, those of the warm-up excluded, in the order of completion."""
    rows = (line.split(",") for line in path.read_text().splitlines())
    return [Record(float(at), float(latency), int(status)) for at, latency, status in rows]


def parse_report(line: str) -> Load:
    """Parse the JSON line that the generator prints."""
    report = json.loads(line)
    names = set(Load.__dataclass_fields__) - {"statuses"}
    statuses = {
        int(status): Responses(
            responses["count"],
            Latency(**responses["latency_ms"]),
            RetryAfter(**responses["retry_after"]) if responses["retry_after"] else None,
        )
        for status, responses in report["statuses"].items()
    }
    return Load(statuses=statuses, **{name: report[name] for name in names})
