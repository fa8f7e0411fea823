"""Plain types of the batcher: inputs, options, limits, results."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.observability.request_record import RequestRecord, current_record

Trigger = Literal["full", "idle", "timeout", "deadline"]
"""Reason a batch was dispatched.

``full``: no other queued input fits. ``idle``: the engine was idle and waiting longer would not
have filled the batch; also during shutdown, and for batches that were cut to the size with the
lowest expected latency. ``timeout``: its maximum queue delay was over. ``deadline``: its earliest
deadline required it.
"""

Priority = Literal["high", "normal", "low"]
PRIORITY_STEP_S = 1.0
PRIORITY_OFFSETS_S: Mapping[Priority, float] = {
    "high": PRIORITY_STEP_S,
    "normal": 0.0,
    "low": -PRIORITY_STEP_S,
}
"""Seconds in the queue that each priority is worth."""


STUCK_AFTER_S = 30.0
STUCK_FACTOR = 10.0
"""Work in a thread is considered stuck after both this time and this multiple of its expected
duration."""


def is_stuck(elapsed_s: float, expected_s: float) -> bool:
    """Return whether work that has taken ``elapsed_s`` is considered stuck."""
    return elapsed_s > max(STUCK_AFTER_S, STUCK_FACTOR * expected_s)


def oldest_age_s(arrivals: Sequence[float]) -> float:
    """Return the seconds since the first of ``arrivals``; 0 without any."""
    return time.perf_counter() - min(arrivals) if arrivals else 0.0


@dataclass(frozen=True)
class BatchInput:
    """One network input.

    ``pixels``: uint8 RGB (height, width, 3). ``flip``: run the artifact that averages over the
    flipped image. ``work``: cost relative to an input of the default size without ``flip``.
    """

    pixels: NDArray[np.uint8]
    flip: bool = False
    work: float = 1.0


@dataclass(frozen=True)
class BatchItemOutput:
    """Outputs of one network input, without the batch axis, and the batch that it was part of.

    ``queue_s`` and ``infer_s``: seconds in the queue and in the engine run.
    """

    outputs: Mapping[str, NDArray[Any]]
    batch_size: int
    trigger: Trigger
    queue_s: float
    infer_s: float


@dataclass(frozen=True)
class SchedulingOptions:
    """Deadline and priority of one request.

    ``deadline_at``: time after which the result is no longer needed, on the clock of
    :func:`time.perf_counter`. ``priority_offset_s``: the request is queued as if it had arrived
    this much earlier; the offset is bounded, so low priorities do not starve.
    """

    deadline_at: float = math.inf
    priority_offset_s: float = 0.0


@dataclass(frozen=True)
class BatchLimits:
    """Limits of one batch.

    ``size``: maximum batch size. ``delay_s``: maximum queue delay of the first input while the
    engine is idle. ``pixels``: maximum pixels of all inputs together, which bounds memory where
    inputs may exceed the default size; a single input always runs. ``run_overhead_s``: time that a
    run costs beside its execution; with it, batches are cut to the size with the lowest expected
    latency, without it they are as large as possible.
    """

    size: int
    delay_s: float = 0.0
    pixels: float = math.inf
    run_overhead_s: float | None = None


@dataclass(frozen=True)
class BatchRun:
    """One successful engine run; ``requests`` has the record of the request of each input."""

    trigger: Trigger
    started_at: float
    infer_s: float
    requests: Sequence[RequestRecord | None]


class BatchObserver(Protocol):
    """Receiver of the outcomes of runs and inputs, for metrics and traces."""

    def batch_done(self, run: BatchRun) -> None:
        """Record a successful run."""

    def cancelled(self, stage: Literal["queue", "infer"]) -> None:
        """Record an input that was cancelled in the queue or during its run."""


class BatchRequest:
    """The inputs of one request; ``future`` resolves to the outputs of all of them.

    Only the event loop changes ``future``; ``failed`` lets engine threads mark the request before
    the event loop has done so.
    """

    def __init__(
        self, future: "asyncio.Future[list[BatchItemOutput]]", scheduling: SchedulingOptions
    ) -> None:
        self.future = future
        self.scheduling = scheduling
        self.record = current_record.get()
        self.entries: list[QueueEntry] = []
        self.failed = False

    @property
    def is_done(self) -> bool:
        """True if the inputs need not run any more."""
        return self.failed or self.future.done()

    def fail(self, error: BaseException) -> None:
        """Set an exception unless the request is done; called by the event loop."""
        if not self.future.done():
            self.future.set_exception(error)


class QueueEntry:
    """One input in the queue.

    ``kind``: artifact variant and shape, equal for all inputs of a batch. ``sort_key``: position
    in the queue, lowest first.
    """

    __slots__ = ("arrived_at", "input", "kind", "output", "request", "sort_key")

    def __init__(self, batch_input: BatchInput, request: BatchRequest) -> None:
        self.input = batch_input
        self.request = request
        self.arrived_at = time.perf_counter()  # under the queue's lock, so never decreasing
        self.kind = batch_input.flip, batch_input.pixels.shape
        self.sort_key = self.arrived_at - request.scheduling.priority_offset_s
        self.output: BatchItemOutput | None = None


def total_work(entries: Sequence[QueueEntry]) -> float:
    """Return the sum of the entries' ``work``."""
    return sum(entry.input.work for entry in entries)
