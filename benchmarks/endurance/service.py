"""``centernet-serve`` as a process of its own, and what can be seen of it from outside."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
BUNDLED = PROJECT / "models" / "blood_cells"
IMAGES = sorted((PROJECT / "docs" / "samples").glob("*.jpg"))

_READY_S = 120.0
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Service:
    """A running service."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def terminate(self, within_s: float) -> float:
        """Send SIGTERM; return the seconds until the end, infinity if it takes too long."""
        began_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return float("inf")
        return time.monotonic() - began_at

    def metrics(self) -> "Metrics":
        """Scrape the metrics."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        return Metrics({(name, labels): float(value) for name, labels, value in _samples(text)})

    def state(self) -> "ProcessState":
        """Look at the process."""
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        links = []
        for entry in (folder / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(entry.readlink()))
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        return ProcessState(
            memory_mib=int(status["VmRSS"].split()[0]) / 1024,
            peak_mib=int(status["VmHWM"].split()[0]) / 1024,
            threads=int(status["Threads"]),
            files=len(links),
            sockets=sum(link.startswith("socket:") for link in links),
            cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        )


@dataclass(frozen=True)
class ProcessState:
    """What Linux says of a process; ``files`` are open ones, sockets among them."""

    memory_mib: float
    peak_mib: float
    threads: int
    files: int
    sockets: int
    cpu_s: float


@dataclass(frozen=True)
class Metrics:
    """One scrape."""

    values: Mapping[tuple[str, str], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series of that name with these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for (found, its_labels), value in self.values.items()
            if found == name and all(one in its_labels for one in wanted)
        )


def _samples(text: str) -> list[tuple[str, str, str]]:
    return [(found[1], found[2] or "", found[3]) for found in _SAMPLE.finditer(text)]


@contextmanager
def running(*options: str, package: Path = BUNDLED) -> Iterator[Service]:
    """Start the service of this checkout on a free port, wait until it is ready, end it at last."""
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log", _free_port()
        command = [
            *(sys.executable, "-c", "from service.cli import main; main()"),
            *("--models", str(package), "--port", str(port), "--log-level", "warning", *options),
        ]
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        with log.open("wb") as output:
            process = subprocess.Popen(command, stderr=output, env=environment)
        try:
            _wait_until_ready(process, port, log)
            yield Service(process, port, log)
        finally:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"the service did not become ready:\n{log.read_text()[-2000:]}")
