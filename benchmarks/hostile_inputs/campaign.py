"""Runs of many inputs of one kind."""

import gc
import multiprocessing
import os
import resource
import sys
import threading
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import httpx
from tqdm import tqdm

from benchmarks.hostile_inputs.bounds import Measurement, measure
from benchmarks.hostile_inputs.live_service import LiveService
from benchmarks.hostile_inputs.readers import ACCEPTED, kind_of
from benchmarks.hostile_inputs.request_kinds import GRPC_KINDS, REQUESTS

CLIENTS = 32
_SILENCE_S = 120.0
"""Time without a result after which a process is ended and its input is a failure."""
_ADDRESS_SPACE_BYTES = 16 << 30
_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Summary:
    """Results of one kind."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    memory_bytes: float = 0.0
    event_loop_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, measurement: Measurement) -> None:
        """Count a measurement."""
        self.outcomes.update(
            measurement.outcome.split(" ") if self.is_http else [measurement.outcome]
        )
        self.cpu_s = max(self.cpu_s, measurement.cpu_s)
        self.memory_bytes = max(self.memory_bytes, measurement.memory_bytes)
        self.event_loop_s = max(self.event_loop_s, measurement.event_loop_s)

    @property
    def is_http(self) -> bool:
        """True if the inputs are requests."""
        return self.kind in REQUESTS

    def row(self) -> list[str]:
        """Return the cells of the report."""
        accepted = self.outcomes["200"] if self.is_http else self.outcomes[ACCEPTED]
        return [
            self.kind,
            f"{self.outcomes.total():,}",
            f"{accepted:,}",
            f"{max(0, self.cpu_s):.2f}",
            f"{max(0, self.memory_bytes) / 1e6:.0f}",
            f"{1000 * self.event_loop_s:.0f}",
            str(len(self.failures)),
        ]


def input_of(kind: str, seed: int, index: int) -> bytes:
    """Return one input; the same in every run."""
    generate = REQUESTS[kind] if kind in REQUESTS else kind_of(kind).generate
    return generate(Random(f"{seed}/{kind}/{index}"))


class Campaign:
    """Inputs of one kind, the bounds that they are held to, and what exceeded them.

    Inputs that exceed a bound are written to ``folder``.
    """

    def __init__(self, kind: str, indices: range, seed: int, folder: Path) -> None:
        self.summary = Summary(kind)
        self._indices = indices
        self._seed = seed
        self._folder = folder
        self._lock = threading.Lock()
        self._progress = tqdm(total=len(indices), desc=kind, unit="inputs", disable=None)

    def run(self, jobs: int) -> Summary:
        """Read all inputs, files in ``jobs`` processes."""
        with self._progress:
            if self.summary.is_http:
                self._send_requests()
            else:
                parts = [self._indices[job::jobs] for job in range(jobs)]
                with ThreadPoolExecutor(jobs) as threads:
                    list(threads.map(self._read_files, parts))
        return self.summary

    def _read_files(self, indices: range) -> None:
        """Read files in a process, which is replaced when it ends or is silent."""
        while indices:
            receiver, sender = _SPAWN.Pipe(duplex=False)
            arguments = (self.summary.kind, indices, self._seed, sender)
            process = _SPAWN.Process(target=_work, args=arguments, daemon=True)
            process.start()
            sender.close()
            while indices:
                if not receiver.poll(_SILENCE_S):
                    self._fail(indices[0], f"no result within {_SILENCE_S:g} s")
                    break
                try:
                    result: Measurement | str = receiver.recv()
                except EOFError:
                    process.join()
                    self._fail(indices[0], f"the process ended with status {process.exitcode}")
                    break
                self._count(indices[0], result)
                indices = indices[1:]
            process.kill()
            process.join()
            indices = indices[1:]

    def _count(self, index: int, result: Measurement | str) -> None:
        if isinstance(result, str):
            self._fail(index, result)
            return
        with self._lock:
            self.summary.add(result)
            self._progress.update()
        if result.violation:
            self._fail(index, result.violation)

    def _fail(self, index: int, reason: str) -> None:
        name = f"{self.summary.kind}-{self._seed}-{index}"
        with self._lock:
            self.summary.failures.append(f"{name}: {reason}")
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(input_of(self.summary.kind, self._seed, index))

    def _send_requests(self) -> None:
        """Send requests of ``CLIENTS`` clients at a time; if they exceed a bound, one by one."""
        with ExitStack() as stack:
            service = stack.enter_context(self._new_service())
            for start in range(0, len(self._indices), CLIENTS):
                indices = self._indices[start : start + CLIENTS]
                bodies = [input_of(self.summary.kind, self._seed, index) for index in indices]
                try:
                    together = service.send(bodies)
                    self.summary.add(together)
                    if together.violation:
                        for index, body in zip(indices, bodies, strict=True):
                            if reason := service.send([body]).violation:
                                self._fail(index, reason)
                        self._fail(indices[0], f"with {len(bodies) - 1} more: {together.violation}")
                except (OSError, httpx.HTTPError) as error:
                    self._fail(indices[0], f"with {len(bodies) - 1} more: {error!r}")
                    stack.close()
                    service = stack.enter_context(self._new_service())
                self._progress.update(len(indices))

    def _new_service(self) -> LiveService:
        return LiveService(is_grpc=self.summary.kind in GRPC_KINDS)


def _work(kind: str, indices: range, seed: int, results: Connection) -> None:
    """Read files in this process; for each, send a measurement or an unexpected error."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libpng writes to it
    generate, read = kind_of(kind)
    gc.freeze()  # as the service does
    for index in indices:
        body = generate(Random(f"{seed}/{kind}/{index}"))
        try:
            results.send(measure(read, body))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            results.send(f"{type(error).__name__} in {frame.name}: {str(error)[:200]}")
