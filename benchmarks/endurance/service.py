"""``centernet-serve`` in a subprocess, its metrics and its process statistics."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
BUNDLED = PROJECT / "models" / "blood_cells"
SERVICE = "from service.cli import main; main()"
IMAGES = sorted((PROJECT / "docs" / "samples").glob("*.jpg"))

_READY_S = 120.0
_SAMPLE_S = 0.5
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Service:
    """A running service process."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def terminate(self, within_s: float) -> float:
        """Send SIGTERM; return the seconds until exit, or infinity after ``within_s``."""
        started_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return float("inf")
        return time.monotonic() - started_at

    def metrics(self) -> "Metrics":
        """Scrape ``/metrics``."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as response:
            text = response.read().decode()
        return Metrics({(name, labels): float(value) for name, labels, value in _samples(text)})

    def reset_peak_memory(self) -> None:
        """Set the peak of :meth:`state` to the current memory."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def state(self) -> "ProcessState":
        """Read the process statistics from /proc."""
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        links = []
        for entry in (folder / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
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
    """Process statistics; ``files`` are open file descriptors, including sockets."""

    memory_mib: float
    peak_mib: float
    threads: int
    files: int
    sockets: int
    cpu_s: float


@dataclass(frozen=True)
class Metrics:
    """The samples of one scrape, by metric name and label string."""

    values: Mapping[tuple[str, str], float]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all series with this name and these labels."""
        required = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for (metric, metric_labels), value in self.values.items()
            if metric == name and all(label in metric_labels for label in required)
        )


def _samples(text: str) -> list[tuple[str, str, str]]:
    return [(match[1], match[2] or "", match[3]) for match in _SAMPLE.finditer(text)]


@contextmanager
def run_service(
    *options: str, package: Path = BUNDLED, project: Path = PROJECT, program: str = SERVICE
) -> Iterator[Service]:
    """Start the service of a checkout, wait until it is ready, and kill it after the block.

    ``program``: the Python program to run.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log", _free_port()
        command = [
            *(sys.executable, "-c", program),
            *(
                "--models",
                str(package.resolve()),
                "--port",
                str(port),
                "--log-level",
                "warning",
                *options,
            ),
        ]
        environment = os.environ | {"PYTHONPATH": str(project.resolve())}
        with log.open("wb") as output:
            # Python imports from the working directory first.
            process = subprocess.Popen(command, stderr=output, env=environment, cwd=project)
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
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"the service did not become ready:\n{log.read_text()[-2000:]}")


@contextmanager
def sample(read: Callable[[], float]) -> Iterator[list[float]]:
    """Call ``read`` every 0.5 s during the block; yields the list of its results."""
    samples: list[float] = []
    ended = threading.Event()

    def collect() -> None:
        while not ended.wait(_SAMPLE_S):
            samples.append(read())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
