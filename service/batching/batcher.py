"""Dynamic batching: requests that arrive while the engine is busy share its next run.

As many threads as the engine takes calls at a time, its workers, share one queue. Each takes a batch
from it, runs it and comes back for the next, without waiting for the event loop, which is busy
with other people's requests; only the outputs go there. Nothing here decodes or allocates per
request: what comes in is ready to be stacked, so one bad image cannot spoil its neighbours.

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
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching.latency_model import LatencyModel
from service.engines import Engine
from service.engines.errors import EngineBrokenError
from service.errors import DeadlineExceededError, EngineError, StoppingError
from service.observability.request_record import RequestRecord, current_record

_log = logging.getLogger(__name__)

Trigger = Literal["full", "idle", "timeout", "deadline"]
"""Why a batch left: it was full; waiting would have gained nothing; it had waited long enough;
its tightest deadline asked for it."""

STUCK_AFTER_S = 30.0
STUCK_FACTOR = 10.0
"""A run is taken for stuck after both this time and so many times what it should have taken."""

RUN_OVERHEAD_S = 0.003
"""What a run costs a busy service beside its own time, however many images share it: the thread
gets Python's lock back, takes the next batch, and the event loop wakes up. 2 to 4 ms were measured,
with the little that the engine itself adds to a run (docs/adr/0012-the-ceiling.md)."""

_FULL_LOAD = 0.9
"""The load is taken for no more than that, because it is an estimate from a few arrivals."""

_MARGIN_S = 0.01
"""A batch that waits leaves so much before its deadline asks for it: timers are late."""


@dataclass(frozen=True)
class BatchItemOutput:
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
class SchedulingOptions:
    """How long a request can wait, and what it may overtake."""

    deadline_at: float = math.inf
    """When nobody wants the answer any more, on the clock of :func:`time.perf_counter`."""
    priority_offset_s: float = 0.0
    """It is queued as if it had arrived so much earlier. Being bounded, it starves nobody."""


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold and how long it may gather."""

    size: int
    delay_s: float = 0.0
    """How long the first input of a batch may wait for company while the engine could run it."""
    pixels: float = math.inf
    """Bounds the memory of a run where inputs may be larger than usual; one always runs."""
    run_overhead_s: float | None = None
    """What a run costs the service beside its own time. With it, batches are of the size with which
    answers come soonest, as far as the estimate knows; without it, as large as they can be."""


@dataclass(frozen=True)
class BatchRun:
    """One run of the engine; ``requests``: for whom, one for each image."""

    trigger: Trigger
    started_at: float
    infer_s: float
    requests: Sequence[RequestRecord | None]


class BatchObserver(Protocol):
    """Hears what becomes of inputs."""

    def batch_done(self, run: BatchRun) -> None:
        """Take note of a run that succeeded."""

    def cancelled(self, stage: Literal["queue", "infer"]) -> None:
        """Take note of an input that was given up, before the engine or while it ran."""


class _Request:
    """One request's inputs; ``future`` gets all their rows.

    Only the event loop changes the future; ``failed`` is for the workers, until it has done so.
    """

    def __init__(
        self, future: "asyncio.Future[list[BatchItemOutput]]", scheduling: SchedulingOptions
    ) -> None:
        self.future = future
        self.scheduling = scheduling
        self.record = current_record.get()
        self.inputs: list[QueueEntry] = []
        self.failed = False

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for its inputs any more."""
        return self.failed or self.future.done()


class QueueEntry:
    """One input of a request."""

    __slots__ = ("arrived_at", "input", "kind", "place", "request", "row")

    def __init__(self, one: BatchInput, request: _Request) -> None:
        self.input = one
        self.request = request
        self.arrived_at = time.perf_counter()  # in the queue's lock, so never before the last
        # What all inputs of a batch have in common.
        self.kind = one.flip, one.pixels.shape
        # Where it stands in the queue: the lowest is served first.
        self.place = self.arrived_at - request.scheduling.priority_offset_s
        self.row: BatchItemOutput | None = None


class Batcher:
    """Queue, batch former and engine threads of one model.

    ``estimate`` says how long a run takes for its work, and learns from each.
    """

    def __init__(
        self, engine: Engine, limits: BatchLimits, estimate: LatencyModel, events: BatchObserver
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._estimate = estimate
        self._events = events
        self._queue: list[QueueEntry] = []
        # Guards the queue and what follows; those who wait for it are workers without work.
        self._changed = threading.Condition()
        self._stopping = False
        self._broken: EngineBrokenError | None = None
        self._arrivals = _ArrivalRate()
        self._runs: dict[int, tuple[float, list[QueueEntry]]] = {}
        self._workers: list[threading.Thread] = []
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Begin to serve; call it inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        # Daemons: a run that hangs must not keep the process alive.
        self._workers = [
            threading.Thread(
                target=self._serve, args=(worker,), name=f"engine_{worker}", daemon=True
            )
            for worker in range(self._engine.concurrency)
        ]
        self._at_work = len(self._workers)
        for worker in self._workers:
            worker.start()

    async def stop(self) -> None:
        """Refuse new work, finish what is queued, end the engine and its threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._workers:
            await self._ended.wait()
        self._engine.close()

    @property
    def problem(self) -> str | None:
        """Why no request can be served any more until the process is started again, if so."""
        if self._broken is not None:
            return f"the engine is broken: {self._broken}"
        if not all(worker.is_alive() for worker in self._workers):
            return "a thread that takes requests from the queue has ended"
        now = time.perf_counter()
        for started_at, batch in list(self._runs.values()):
            default_s = self._estimate.seconds(_work(batch))
            if now - started_at > max(STUCK_AFTER_S, STUCK_FACTOR * default_s):
                return (
                    f"a run of {len(batch)} images began {now - started_at:.0f} s ago and has not "
                    f"ended; {default_s:.2g} s are usual"
                )
        return None

    @property
    def depth(self) -> int:
        """Inputs waiting for a batch."""
        return len(self._queue)

    @property
    def oldest_age_s(self) -> float:
        """How long the oldest input has been waiting for a batch; 0 when none is."""
        arrivals = [waiting.arrived_at for waiting in list(self._queue)]
        return time.perf_counter() - min(arrivals) if arrivals else 0.0

    async def submit(
        self, inputs: Sequence[BatchInput], scheduling: SchedulingOptions | None = None
    ) -> list[BatchItemOutput]:
        """Wait for the outputs of all inputs of one request.

        Cancelling the call, or the failure of one of them, takes the rest out of the queue.
        Raises :class:`StoppingError`, :class:`DeadlineExceededError` and :class:`EngineError`.
        """
        request = _Request(self._loop.create_future(), scheduling or SchedulingOptions())
        self._put(request, inputs)
        return await self._answer(request)

    async def prepare_and_submit(
        self,
        pool: Executor,
        prepare: Callable[[], Sequence[BatchInput]],
        scheduling: SchedulingOptions,
    ) -> list[BatchItemOutput]:
        """As :meth:`submit`, of what ``prepare`` gives when it is called in ``pool``.

        From there it goes into the queue, and not through the event loop. Raises what ``prepare``
        does, too.
        """
        request = _Request(self._loop.create_future(), scheduling)
        # The traceback of an error leads to all that the pool was given, and the request to the
        # error: that circle is opened below, so that no image waits for the garbage collector.
        handed = [request]
        working = pool.submit(self._prepare_and_put, handed, prepare)
        try:
            return await self._answer(request)
        finally:
            working.cancel()
            handed.clear()
            del request

    def _prepare_and_put(
        self, handed: list[_Request], prepare: Callable[[], Sequence[BatchInput]]
    ) -> None:
        for request in handed:  # one, or none if it was given up already
            try:
                self._put(request, prepare())
            except BaseException as error:  # whatever it was, somebody waits to hear of it
                self._call(_fail, request, error)
            finally:
                del request

    async def _answer(self, request: _Request) -> list[BatchItemOutput]:
        try:
            return await request.future
        except BaseException:
            self._give_up(request)
            raise
        finally:
            request.inputs = []  # which refer to it
            del request

    def _give_up(self, request: _Request) -> None:
        with self._changed:
            left = [one for one in request.inputs if one in self._queue]
            for one in left:
                self._queue.remove(one)
            if left:
                self._changed.notify_all()  # at the end, workers wait for an empty queue
        for _ in left:
            self._events.cancelled("queue")

    def _put(self, request: _Request, inputs: Sequence[BatchInput]) -> None:
        """Queue the inputs of a request; any thread may."""
        with self._changed:
            if self._stopping:
                raise StoppingError(
                    "The service is shutting down. Send the request again elsewhere."
                )
            if self._broken is not None:
                raise _engine_error(self._broken)
            if request.future.done():
                return  # it was given up before it got here
            request.inputs = [QueueEntry(one, request) for one in inputs]
            for one in request.inputs:
                insort(self._queue, one, key=_place)
                self._arrivals.observe(one.arrived_at)
            self._changed.notify(len(request.inputs))

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop do something."""
        with suppress(RuntimeError):  # the loop has ended, and with it all that waited
            self._loop.call_soon_threadsafe(function, *arguments)

    def _serve(self, worker: int) -> None:
        """Take batches and run them: what a thread of the engine does all its life."""
        try:
            while (taken := self._take(worker)) is not None:
                outcome = self._run(*taken)
                del self._runs[worker]
                self._call(*outcome)
                del taken, outcome  # an idle worker holds no images
        finally:
            self._call(self._end_worker)

    def _end_worker(self) -> None:
        self._at_work -= 1
        if not self._at_work:
            self._ended.set()

    def _take(self, worker: int) -> tuple[list[QueueEntry], Trigger] | None:
        """Wait for a batch that should leave, and take it; None when there will be none."""
        idle = False
        with self._changed:
            while True:
                now = time.perf_counter()
                batch, trigger, wait_s = self._form(now, idle)
                if trigger is not None:
                    batch, trigger = self._soonest(now, batch, trigger)
                    for waiting in batch:
                        self._queue.remove(waiting)
                    self._runs[worker] = now, batch
                    if self._queue:
                        self._changed.notify()  # what is left may be another worker's batch
                    return batch, trigger
                if self._stopping and not self._queue:
                    return None
                idle = True
                self._changed.wait(wait_s)

    def _form(
        self, now: float, idle: bool
    ) -> tuple[list[QueueEntry], Trigger | None, float | None]:
        """Choose the next batch: its inputs, why it leaves now or None, seconds it may still wait.

        ``idle``: the worker had nothing to do. What cannot be done in time any more is taken out and
        answered.
        """
        batch: list[QueueEntry] = []
        work = 0.0
        tightest = math.inf
        trigger: Trigger | None = None
        for waiting in list(self._queue):
            if waiting.request.is_over:
                continue  # who waited takes it out
            deadline_at = waiting.request.scheduling.deadline_at
            alone_s = self._estimate.seconds(waiting.input.work)
            # An idle engine tries whatever has time left: a run that once took too long would
            # otherwise be believed for ever.
            is_first_try = idle and not (batch or self._runs)
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

    def _soonest(
        self, now: float, batch: list[QueueEntry], trigger: Trigger
    ) -> tuple[list[QueueEntry], Trigger]:
        """Cut a batch to about the size with which all are answered soonest on average.

        Everybody in a batch waits for its end, and everybody behind it for what the run costs
        beside its images. Those behind are the m that wait, and who will come before the worker is
        free of them: m / (1 - load) in all. In batches of n, one after the other, M inputs are
        done after (slope * n + base) * (M / n + 1) / 2 on average, which is least for
        n = sqrt(M * base / slope). Where so many wait that all workers could be full, images per
        second count instead; and who asks for a delay wants company, not haste.
        """
        (slope_s, base_s), limits, workers = self._estimate.line, self._limits, len(self._workers)
        if trigger == "deadline" or limits.delay_s or limits.run_overhead_s is None or not slope_s:
            return batch, trigger
        if len(self._queue) >= workers * limits.size:
            return batch, trigger
        slope_s *= _work(batch) / len(batch)
        base_s += limits.run_overhead_s
        load = self._arrivals.expected(slope_s + base_s / limits.size) / workers
        behind = len(self._queue) / workers / (1 - min(load, _FULL_LOAD))
        best = math.sqrt(behind * base_s / slope_s)
        # Powers of two: engines on a GPU pad to them, and half a step beside the best costs little.
        size: int = 2 ** round(math.log2(max(1.0, best)))
        # Those who are left come after a run more.
        late = now + slope_s * len(batch) + 2 * base_s
        if any(waiting.request.scheduling.deadline_at < late for waiting in batch[size:]):
            return batch, trigger
        return batch[:size], trigger if size >= len(batch) else "idle"

    def _fits(self, waiting: QueueEntry, size: int) -> bool:
        height_px, width_px, _ = waiting.input.pixels.shape
        pixels = (size + 1) * height_px * width_px
        return size < self._limits.size and pixels <= self._limits.pixels

    def _expire(self, waiting: QueueEntry) -> None:
        self._queue.remove(waiting)
        self._events.cancelled("queue")
        waiting.request.failed = True
        error = DeadlineExceededError(
            "The deadline of the request left no time to run the model, so it was "
            "dropped. Send it again when the service is less busy, or allow more time."
        )
        self._call(_fail, waiting.request, error)

    def _run(self, batch: list[QueueEntry], trigger: Trigger) -> tuple[Any, ...]:
        """Run the engine; return what the event loop is to call then, and with what."""
        began_at = time.perf_counter()
        try:
            outputs = self._engine.run([one.input.pixels for one in batch], batch[0].input.flip)
            for name, values in outputs.items():
                if len(values) != len(batch):
                    raise RuntimeError(
                        f"output {name} has {len(values)} rows for a batch of {len(batch)}"
                    )
        except Exception as error:
            _log.exception("the engine failed on a batch of %d", len(batch))
            if isinstance(error, EngineBrokenError):
                with self._changed:
                    self._broken = error
                    batch, self._queue = [*batch, *self._queue], []
                    self._changed.notify_all()
            for waiting in batch:
                waiting.request.failed = True
            return self._fail_all, batch, error
        seconds = time.perf_counter() - began_at
        run = BatchRun(trigger, began_at, seconds, [one.request.record for one in batch])
        return self._deliver, batch, outputs, run

    def _fail_all(self, batch: list[QueueEntry], error: Exception) -> None:
        for waiting in batch:
            _fail(waiting.request, _engine_error(error))

    def _deliver(
        self, batch: list[QueueEntry], outputs: Mapping[str, NDArray[Any]], run: BatchRun
    ) -> None:
        """Give each request its rows, on the event loop."""
        self._estimate.observe(_work(batch), run.infer_s)
        self._events.batch_done(run)
        is_finite = np.isfinite(outputs["scores"]).reshape(len(batch), -1).all(axis=1).tolist()
        for index, waiting in enumerate(batch):
            request = waiting.request
            if request.failed:
                continue  # another of its inputs has
            if request.future.done():
                self._events.cancelled("infer")
            elif not is_finite[index]:
                _log.error("the engine gave a score that is not a number")
                request.failed = True
                _fail(request, _engine_error(ValueError("a score is not a number")))
            else:
                row = {name: values[index] for name, values in outputs.items()}
                queue_s = run.started_at - waiting.arrived_at
                waiting.row = BatchItemOutput(row, len(batch), run.trigger, queue_s, run.infer_s)
                rows = [one.row for one in request.inputs if one.row is not None]
                if len(rows) == len(request.inputs):
                    request.future.set_result(rows)


def _place(waiting: QueueEntry) -> float:
    return waiting.place


def _work(batch: Sequence[QueueEntry]) -> float:
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


def _fail(request: _Request, error: BaseException) -> None:
    if not request.future.done():
        request.future.set_exception(error)


def _engine_error(cause: Exception) -> EngineError:
    # One instance per request: a shared exception would collect every waiter's traceback.
    error = EngineError(
        "The model could not be run on the batch that held this image. Try again; "
        "if it stays so, the service's log has the cause."
    )
    error.__cause__ = cause
    return error
