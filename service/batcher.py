"""Dynamic batching: requests that arrive while the engine is busy share its next run.

One task owns the queue and forms batches; as many threads as the engine takes calls at a time run
them. Nothing here decodes or allocates per request: what comes in is ready to be stacked, so one
bad picture cannot spoil its neighbours.

A batch leaves when it is full, when its time to wait is over, when nobody else is expected within
that time, or when its tightest deadline would be missed otherwise. What nobody waits for any
longer, or what cannot be done in time even alone, never reaches the engine.

Only inputs of one shape and one variant of the graph can share a batch. The first in the queue
decides which; those of its kind join it in their order, the others keep their places. So whatever
arrives later, each batch brings every waiting input nearer to being the first.
"""

import asyncio
import logging
import math
import time
from bisect import insort
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engines import Engine
from service.engines.errors import EngineBrokenError
from service.errors import DeadlineExceededError, EngineError, StoppingError
from service.estimates import LinearEstimate
from service.record import RequestRecord, current_record

_log = logging.getLogger(__name__)

Trigger = Literal["full", "idle", "timeout", "deadline"]
"""Why a batch left: it was full; waiting would have gained nothing; it had waited long enough;
its tightest deadline asked for it."""

STUCK_AFTER_S = 30.0
STUCK_FACTOR = 10.0
"""A run is taken for stuck after both this time and so many times what it should have taken."""

_AHEAD = 1
"""A full batch gains nothing by waiting, so one may stand ready for the thread that is free first:
no thread waits for the event loop then."""
_MARGIN_S = 0.01
"""A batch that waits leaves so much before its deadline asks for it: timers are late."""


@dataclass(frozen=True)
class BatchRow:
    """One image's share of a batch: its outputs without the batch axis, and how it got there."""

    outputs: Mapping[str, NDArray[Any]]
    batch_size: int
    trigger: Trigger
    queue_s: float
    infer_s: float


@dataclass(frozen=True)
class BatchInput:
    """One network input: ``pixels`` uint8 (height, width, 3), and the variant of the graph."""

    pixels: NDArray[np.uint8]
    flip: bool = False
    work: float = 1.0
    """What it costs the engine, where 1 is an input of the usual size without ``flip``."""


@dataclass(frozen=True)
class Urgency:
    """How long a request can wait, and what it may overtake."""

    deadline_at: float = math.inf
    """When nobody wants the answer any more, on the clock of :func:`time.perf_counter`."""
    head_start_s: float = 0.0
    """It is queued as if it had arrived so much earlier. Being bounded, it starves nobody."""


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold and how long it may gather."""

    size: int
    delay_s: float = 0.0
    """How long the first input of a batch may wait for company while the engine could run it."""
    pixels: float = math.inf
    """Bounds the memory of a run where inputs may be larger than usual; one always runs."""


@dataclass(frozen=True)
class BatchRun:
    """One run of the engine; ``requests``: for whom, one for each image."""

    trigger: Trigger
    started_at: float
    infer_s: float
    requests: Sequence[RequestRecord | None]


class BatchEvents(Protocol):
    """Hears what becomes of inputs."""

    def batch_done(self, run: BatchRun) -> None:
        """Take note of a run that succeeded."""

    def cancelled(self, stage: Literal["queue", "infer"]) -> None:
        """Take note of an input that was given up, before the engine or while it ran."""


@dataclass(eq=False)
class _Waiting:
    input: BatchInput
    future: "asyncio.Future[BatchRow]"
    urgency: Urgency
    arrived_at: float = field(default_factory=time.perf_counter)
    request: RequestRecord | None = field(default_factory=current_record.get)

    @property
    def kind(self) -> tuple[bool, tuple[int, ...]]:
        """What all inputs of a batch have in common."""
        return self.input.flip, self.input.pixels.shape

    @property
    def place(self) -> float:
        """Where it stands in the queue: the lowest is served first."""
        return self.arrived_at - self.urgency.head_start_s


class Batcher:
    """Queue, batch former and engine threads of one model.

    ``estimate`` says how long a run takes for its work, and learns from each.
    """

    def __init__(
        self, engine: Engine, limits: BatchLimits, estimate: LinearEstimate, events: BatchEvents
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._estimate = estimate
        self._events = events
        self._queue: list[_Waiting] = []
        self._changed = asyncio.Event()
        self._stopping = False
        self._broken: EngineBrokenError | None = None
        self._arrivals = _ArrivalRate()
        self._runs: dict[asyncio.Task[None], tuple[float, list[_Waiting]]] = {}
        self._threads = ThreadPoolExecutor(engine.concurrency, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve; call it inside the running event loop."""
        self._task = asyncio.create_task(self._serve(), name="batcher")

    async def stop(self) -> None:
        """Refuse new work, finish what is queued, end the engine and its threads."""
        self._stopping = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._threads.shutdown()
        self._engine.close()

    @property
    def problem(self) -> str | None:
        """Why no request can be served any more until the process is started again, if so."""
        if self._broken is not None:
            return f"the engine is broken: {self._broken}"
        if self._task is None or self._task.done():
            return "nobody takes requests from the queue"
        now = time.perf_counter()
        for started_at, batch in self._runs.values():
            usual_s = self._estimate.seconds(_work(batch))
            if now - started_at > max(STUCK_AFTER_S, STUCK_FACTOR * usual_s):
                return (
                    f"a run of {len(batch)} images began {now - started_at:.0f} s ago and has not "
                    f"ended; {usual_s:.2g} s are usual"
                )
        return None

    @property
    def depth(self) -> int:
        """Inputs waiting for a batch."""
        return len(self._queue)

    @property
    def oldest_age_s(self) -> float:
        """How long the oldest input has been waiting for a batch; 0 when none is."""
        arrivals = [waiting.arrived_at for waiting in self._queue]
        return time.perf_counter() - min(arrivals) if arrivals else 0.0

    async def submit(
        self, inputs: Sequence[BatchInput], urgency: Urgency | None = None
    ) -> list[BatchRow]:
        """Wait for the outputs of all inputs of one request.

        Cancelling the call, or the failure of one of them, takes the rest out of the queue.
        Raises :class:`StoppingError`, :class:`DeadlineExceededError` and :class:`EngineError`.
        """
        if self._stopping:
            raise StoppingError("The service is shutting down. Send the request again elsewhere.")
        if self._broken is not None:
            raise _engine_error(self._broken)
        loop = asyncio.get_running_loop()
        urgency = urgency or Urgency()
        waiting = [_Waiting(one, loop.create_future(), urgency) for one in inputs]
        for one in waiting:
            insort(self._queue, one, key=lambda queued: queued.place)
            self._arrivals.observe(one.arrived_at)
        self._changed.set()
        try:
            return await asyncio.gather(*(one.future for one in waiting))
        finally:
            for one in waiting:
                if not one.future.done() or one.future.cancelled():
                    self._give_up(one)

    def _give_up(self, waiting: _Waiting) -> None:
        waiting.future.cancel()
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._events.cancelled("queue")

    async def _serve(self) -> None:
        lanes = self._engine.concurrency
        while True:
            self._changed.clear()
            wait_s = None
            if len(self._runs) < lanes + _AHEAD:
                batch, trigger, wait_s = self._form(time.perf_counter())
                if trigger is not None and (len(self._runs) < lanes or trigger == "full"):
                    self._begin(batch, trigger)
                    continue
            if self._stopping and not self._queue and not self._runs:
                return
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _form(self, now: float) -> tuple[list[_Waiting], Trigger | None, float | None]:
        """Choose the next batch: its inputs, why it leaves now or None, seconds it may still wait.

        What cannot be done in time any more is taken out and answered.
        """
        batch: list[_Waiting] = []
        work = 0.0
        tightest = math.inf
        trigger: Trigger | None = None
        for waiting in list(self._queue):
            deadline_at = waiting.urgency.deadline_at
            alone_s = self._estimate.seconds(waiting.input.work)
            # An idle engine tries whatever has time left: a run that once took too long would
            # otherwise be believed for ever.
            is_first_try = not (batch or self._runs)
            done_at = now + self._estimate.seconds(work + waiting.input.work)
            if deadline_at < now + (0 if is_first_try else alone_s):
                self._expire(waiting)
            elif batch and waiting.kind != batch[0].kind:
                continue
            elif batch and (done_at > tightest or not self._fits(waiting, len(batch))):
                trigger = "deadline" if done_at > tightest else "full"
                break
            elif done_at <= deadline_at or is_first_try:
                batch.append(waiting)
                work += waiting.input.work
                tightest = min(tightest, deadline_at)
        if not batch:
            return batch, None, None
        if len(batch) == self._limits.size:
            trigger = "full"
        if trigger is not None or self._stopping:
            return batch, trigger or "idle", None
        waited_s = now - min(waiting.arrived_at for waiting in batch)
        left_s = self._limits.delay_s - waited_s
        spare_s = tightest - now - self._estimate.seconds(work + batch[-1].input.work) - _MARGIN_S
        if left_s <= 0:
            return batch, "timeout" if self._limits.delay_s else "idle", None
        if self._arrivals.expected(left_s) < 1:
            return batch, "idle", None
        if spare_s <= 0:
            return batch, "deadline", None
        return batch, None, min(left_s, spare_s)

    def _fits(self, waiting: _Waiting, size: int) -> bool:
        height_px, width_px, _ = waiting.input.pixels.shape
        pixels = (size + 1) * height_px * width_px
        return size < self._limits.size and pixels <= self._limits.pixels

    def _expire(self, waiting: _Waiting) -> None:
        self._queue.remove(waiting)
        self._events.cancelled("queue")
        if not waiting.future.done():
            waiting.future.set_exception(
                DeadlineExceededError(
                    "The deadline of the request left no time to run the model, so it was "
                    "dropped. Send it again when the service is less busy, or allow more time."
                )
            )

    def _begin(self, batch: list[_Waiting], trigger: Trigger) -> None:
        for waiting in batch:
            self._queue.remove(waiting)
        task = asyncio.create_task(self._run(batch, trigger), name="batch")
        self._runs[task] = time.perf_counter(), batch
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._runs[task]
        self._changed.set()

    async def _run(self, batch: list[_Waiting], trigger: Trigger) -> None:
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(self._threads, self._run_engine, batch)
        except Exception as error:
            _log.exception("the engine failed on a batch of %d", len(batch))
            if self._broken is not None:
                batch, self._queue = [*batch, *self._queue], []
            for waiting in batch:
                _fail(waiting, error)
            return
        for _ in range(len(batch) - len(done.batch)):
            self._events.cancelled("queue")
        batch = done.batch
        if not batch:
            return
        self._estimate.observe(_work(batch), done.seconds)
        requests = [waiting.request for waiting in batch]
        self._events.batch_done(BatchRun(trigger, done.began_at, done.seconds, requests))
        for index, waiting in enumerate(batch):
            row = {name: values[index] for name, values in done.outputs.items()}
            # A request that gave up meanwhile has a cancelled future, which takes no result.
            if waiting.future.done():
                self._events.cancelled("infer")
            elif not np.isfinite(row["scores"]).all():
                _log.error("the engine gave a score that is not a number")
                _fail(waiting, ValueError("a score is not a number"))
            else:
                queue_s = done.began_at - waiting.arrived_at
                waiting.future.set_result(BatchRow(row, len(batch), trigger, queue_s, done.seconds))

    def _run_engine(self, batch: list[_Waiting]) -> "_Done":
        """Run in a thread of the engine.

        The batch may have stood ready for a while: who gave up meanwhile is left out, and if
        that is everybody, the engine does not run.
        """
        batch = [waiting for waiting in batch if not waiting.future.done()]
        began_at = time.perf_counter()
        if not batch:
            return _Done(batch, {}, began_at, 0.0)
        if self._broken is not None:
            raise self._broken
        pixels = [waiting.input.pixels for waiting in batch]
        try:
            outputs = self._engine.run(pixels, batch[0].input.flip)
        except EngineBrokenError as error:
            self._broken = error  # here already: the next batch may stand ready
            raise
        for name, values in outputs.items():
            if len(values) != len(batch):
                raise RuntimeError(
                    f"output {name} has {len(values)} rows for a batch of {len(batch)}"
                )
        return _Done(batch, outputs, began_at, time.perf_counter() - began_at)


@dataclass(frozen=True)
class _Done:
    batch: list[_Waiting]
    outputs: Mapping[str, NDArray[Any]]
    began_at: float
    seconds: float


def _work(batch: Sequence[_Waiting]) -> float:
    return sum(waiting.input.work for waiting in batch)


class _ArrivalRate:
    """Inputs per second, smoothed over about the last ten."""

    def __init__(self) -> None:
        self._last_at: float | None = None
        self._interval_s = math.inf

    def observe(self, arrived_at: float) -> None:
        """Take note of an arrival."""
        if self._last_at is not None:
            interval_s = arrived_at - self._last_at
            if math.isinf(self._interval_s):
                self._interval_s = interval_s
            self._interval_s += 0.1 * (interval_s - self._interval_s)
        self._last_at = arrived_at

    def expected(self, seconds: float) -> float:
        """Arrivals to be expected within so many seconds."""
        return seconds / self._interval_s if self._interval_s > 0 else math.inf


def _fail(waiting: _Waiting, cause: Exception) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(_engine_error(cause))


def _engine_error(cause: Exception) -> EngineError:
    # One instance per request: a shared exception would collect every waiter's traceback.
    error = EngineError(
        "The model could not be run on the batch that held this image. Try again; "
        "if it stays so, the service's log has the cause."
    )
    error.__cause__ = cause
    return error
