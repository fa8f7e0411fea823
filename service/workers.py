"""Worker processes that share one port, and the supervisor that starts and replaces them."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Self

import uvicorn

from service.http.uvicorn_server import url_of
from service.settings import Settings

_log = logging.getLogger(__name__)

# Not CENTERNET_: this is no setting, and unknown settings are rejected.
_VARIABLE = "_CENTERNET_WORKER"
_POLL_S = 0.1
_STABLE_S = 60.0
"""Seconds after which the end of a worker is no longer counted as a failure to start."""
_MAX_DELAY_S = 30
_EXIT_S = 5.0
"""Seconds beyond the shutdown timeout after which a worker that has not ended is killed."""
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Worker:
    """One of ``count`` worker processes, as described to it by the supervisor.

    ``listener``: file descriptor of the listening socket; ``folder``: directory of the sockets on
    which the workers answer each other; ``supervisor_pid``: its parent process. ``listens_first``:
    it listens before its models are loaded, so that probes are answered during the start.
    ``grpc_port``: port that all workers listen on for gRPC; None for no gRPC.
    """

    index: int
    count: int
    listener: int
    folder: str
    supervisor_pid: int
    listens_first: bool
    grpc_port: int | None

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the worker that this process is; None if no supervisor has started it."""
        description = os.environ.pop(_VARIABLE, None)
        return None if description is None else cls(**json.loads(description))

    def environment(self) -> dict[str, str]:
        """Return the environment of the worker process."""
        return {**os.environ, _VARIABLE: json.dumps(asdict(self))}

    @property
    def socket_path(self) -> Path:
        """Path of the socket on which the worker answers others; it exists once it is ready."""
        return Path(self.folder, f"{self.index}.sock")


def supervise(settings: Settings) -> int:
    """Run ``settings.workers`` workers until SIGTERM or SIGINT; return the exit status.

    Each worker is the same command in a process of its own, on its share of the cores. One that
    ends is replaced. If one ends before it has been ready for the first time, all are ended.
    """
    config = uvicorn.Config("", host=settings.host, port=settings.port, log_config=None)
    with config.bind_socket() as listener, TemporaryDirectory(prefix="centernet-") as folder:
        status = _Supervisor(settings, listener, folder).run()
    if status == -signal.SIGTERM:
        # End by the signal, as a service of one process does. The first process of a container
        # ignores it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        return 0
    return status


class _Supervisor:
    def __init__(self, settings: Settings, listener: socket.socket, folder: str) -> None:
        self._listener = listener
        self._url = url_of(settings.host, listener)
        self._end_s = settings.drain_delay_s + settings.shutdown_timeout_s + _EXIT_S
        cores, count = sorted(os.sched_getaffinity(0)), settings.workers
        self._slots = [
            _Slot(
                Worker(
                    *(index, count, listener.fileno(), folder, os.getpid()),
                    listens_first=index == 0,
                    grpc_port=settings.grpc_port,
                ),
                set(cores[index * len(cores) // count : (index + 1) * len(cores) // count]),
            )
            for index in range(count)
        ]
        self._signals: list[int] = []
        self._forwards_reload = "signal" in settings.model_control

    def run(self) -> int:
        """Return the exit status, negative for a signal."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if self._forwards_reload:
            signal.signal(signal.SIGHUP, self._on_reload)
        status = None
        is_ready = False
        while status is None and not self._signals:
            status = self._replace_ended()
            if not is_ready and all(slot.has_been_ready for slot in self._slots):
                is_ready = True
                _log.info("all %d workers are ready: %s", len(self._slots), self._url)
            time.sleep(_POLL_S)
        self._listener.close()
        self._end_workers()
        if status is not None:
            return status
        return _EXIT_INTERRUPTED if self._signals[0] == signal.SIGINT else -signal.SIGTERM

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signals.append(number)

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        for slot in self._slots:
            slot.must_reload = True

    def _replace_ended(self) -> int | None:
        """Start the workers that do not run; return an exit status if the service must end."""
        for slot in self._slots:
            status = slot.update()
            if status is not None:
                return status
        return None

    def _end_workers(self) -> None:
        """Send SIGTERM to the workers, forward further signals, and wait until all have ended."""
        forwarded, end_at = 0, time.monotonic() + self._end_s
        while running := [slot.process for slot in self._slots if slot.is_running]:
            if forwarded < max(1, len(self._signals)):
                number = self._signals[forwarded] if forwarded else signal.SIGTERM
                forwarded += 1
                for process in running:
                    process.send_signal(number)
            if time.monotonic() > end_at:
                for process in running:
                    process.kill()
            time.sleep(_POLL_S)


class _Slot:
    """The process of one worker, and those that replace it."""

    process: "subprocess.Popen[bytes]"

    def __init__(self, worker: Worker, cores: set[int]) -> None:
        self._worker = worker
        self._cores = cores
        self._start_at: float | None = 0.0
        """Time of the next start; None while the process runs."""
        self._failures = 0
        self.has_been_ready = False
        self.must_reload = False
        """Whether to send SIGHUP to the process once it is ready; it may have no handler before."""

    @property
    def is_running(self) -> bool:
        return self._start_at is None and self.process.poll() is None

    def update(self) -> int | None:
        """Start the process if it does not run and its time has come.

        Returns the exit status of the service if the first process could not start.
        """
        now = time.monotonic()
        if self._start_at is not None:
            if now >= self._start_at:
                self._start(now)
            return None
        is_ready = self._worker.socket_path.exists()
        self.has_been_ready = self.has_been_ready or is_ready
        status = self.process.poll()
        if status is None:
            if is_ready and self.must_reload:
                self.must_reload = False
                self.process.send_signal(signal.SIGHUP)
            return None
        index = self._worker.index
        if not self.has_been_ready:
            _log.error("worker %d could not start (%s); the service ends", index, _reason(status))
            return status if status > 0 else 1
        self._failures = 0 if now - self._started_at > _STABLE_S else self._failures + 1
        delay_s = min(2 ** max(0, self._failures - 1) - 1, _MAX_DELAY_S)
        _log.error("worker %d ended (%s); restart in %d s", index, _reason(status), delay_s)
        self._start_at = now + delay_s
        return None

    def _start(self, now: float) -> None:
        worker = self._worker
        if self.has_been_ready:  # the other workers answer probes while it loads
            worker = Worker(**{**asdict(worker), "listens_first": False})
        worker.socket_path.unlink(missing_ok=True)
        with _affinity(self._cores):
            self.process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env=worker.environment(),
                pass_fds=[worker.listener],
                # Ctrl-C in a terminal reaches the supervisor only, which forwards it.
                process_group=0,
            )
        self._started_at, self._start_at = now, None
        self.must_reload = False  # it reads the packages as they are now


@contextmanager
def _affinity(cores: set[int]) -> Iterator[None]:
    """Run the block on these cores; processes that it starts inherit the affinity."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _reason(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
