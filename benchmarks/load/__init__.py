"""A compiled load generator and what it reports; see ``generator.cpp``.

It is compiled by g++ on first use. Its CPU seconds are reported, because it shares the machine with
the server that it asks.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("generator.cpp")
BUILD = Path(__file__).parents[2] / "build" / "load"
_DRAIN_S = 60.0
"""Seconds that a run may last beyond what its own limits say, on a machine that is busy."""


class LoadError(RuntimeError):
    """The generator could not be compiled or could not do its work."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds: percentiles by nearest rank."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class RetryAfter:
    """How many answers of one status had the header in seconds, and what it said."""

    count: int
    min_s: float
    max_s: float


@dataclass(frozen=True)
class Answers:
    """The answers of one status."""

    count: int
    latency_ms: Latency
    retry_after: RetryAfter | None


@dataclass(frozen=True)
class Load:
    """What one run found.

    A closed loop counts what was answered within ``seconds``; an open loop counts every request
    that was due then, however late the answer came, and its latencies begin when they were due.
    """

    seconds: float
    sent: int
    answered: int
    statuses: dict[int, Answers]
    timeouts: int
    failures: int
    """Connections that were refused or ended before the answer."""
    disconnected: int
    """Requests given up on purpose."""
    retried: int
    """Requests sent again because the server had closed the kept connection."""
    most_connections: int
    latest_dispatch_ms: float
    """By how much the generator itself was late at worst: if it is much, it was starved."""
    cpu_share: float
    """CPU seconds of the generator per second."""

    @property
    def good(self) -> Answers | None:
        """The answers with status 200."""
        return self.statuses.get(200)

    @property
    def images_per_second(self) -> float:
        """Answers with status 200 per second."""
        return (self.good.count if self.good else 0) / self.seconds

    @property
    def is_clean(self) -> bool:
        """Whether every request got status 200."""
        return set(self.statuses) == {200} and not self.timeouts and not self.failures


@dataclass(frozen=True)
class Target:
    """Where to send what: bodies are files, taken in turn."""

    port: int
    path: str
    bodies: Sequence[Path]
    headers: Sequence[str] = ("Content-Type: image/jpeg",)


def closed_loop(
    target: Target,
    seconds: float,
    connections: int,
    *,
    warmup_s: float = 0.0,
    timeout_s: float = 30.0,
    records: Path | None = None,
) -> Load:
    """Each connection sends its next request when it has the answer to the last one."""
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
    """Poisson arrivals, ``rate`` per second, whatever the server does.

    ``connections`` bounds them, 0 does not; requests wait for one, and that counts as latency.
    ``disconnect_fraction`` of the requests are given up ``disconnect_after_s`` after sending began.
    ``records`` is a file for a line per request: seconds since the start when it was due, its
    milliseconds, and its status (0 failed, -1 timed out, -2 given up).
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
    """Compile the generator, unless that was done, and return the program."""
    source = SOURCE.read_bytes()
    program = BUILD / f"generator-{hashlib.sha256(source).hexdigest()[:16]}"
    if program.exists():
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    # Under a name of its own first: another process may be compiling it too.
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        draft = Path(directory) / "generator"
        command = ["g++", "-std=c++20", "-O2", "-Wall", "-Wextra", "-o", str(draft), str(SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise LoadError("there is no g++, which the load generator needs.") from error
        if done.returncode:
            raise LoadError(f"g++ does not compile {SOURCE}:\n{done.stderr}")
        draft.replace(program)
    return program


def _run(target: Target, seconds: float, options: dict[str, Any], records: Path | None) -> Load:
    command = [str(build()), "--port", str(target.port), "--path", target.path]
    command += [part for header in target.headers for part in ("--header", header)]
    for name, value in {"seconds": seconds, **options}.items():
        command += [f"--{name}", str(value)]
    if records is not None:
        command += ["--records", str(records)]
    command += [str(body) for body in target.bodies]
    limit_s = options["warmup"] + seconds + options["timeout"] + _DRAIN_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"the load generator did not end within {limit_s:g} s.") from error
    if done.returncode:
        raise LoadError(done.stderr.strip() or f"the load generator ended with {done.returncode}.")
    return read_report(done.stdout)


def read_report(line: str) -> Load:
    """Read the generator's line of JSON."""
    report = json.loads(line)
    names = set(Load.__dataclass_fields__) - {"statuses"}
    statuses = {
        int(status): Answers(
            answers["count"],
            Latency(**answers["latency_ms"]),
            RetryAfter(**answers["retry_after"]) if answers["retry_after"] else None,
        )
        for status, answers in report["statuses"].items()
    }
    return Load(statuses=statuses, **{name: report[name] for name in names})
