"""Dynamic batching: requests that arrive while the engine is busy share its next run.

One queue and as many worker threads as the engine accepts concurrent runs. A worker takes a batch,
runs it and takes the next one without waiting for the event loop; only the outputs are handed to
the event loop. Images are decoded and resized before they are queued, so an invalid image never
enters a batch.

A batch is dispatched when it is full, when its maximum queue delay is over, when no further input
is expected within that delay, or when its earliest deadline requires it
(:mod:`service.batching.batch_policy`). Cancelled inputs and inputs that cannot meet their deadline
never reach the engine.

Only inputs of one shape and one artifact variant share a batch. The first entry of the queue
decides which; entries of the same kind join it in order, the others keep their positions, so every
batch moves each waiting entry closer to the front.
"""

import asyncio
import logging
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batching.batch_policy import BatchPolicy
from service.batching.latency_model import ArrivalRate, LatencyModel
from service.batching.types import (
    BatchInput,
    BatchItemOutput,
    BatchLimits,
    BatchObserver,
    BatchRequest,
    BatchRun,
    QueueEntry,
    SchedulingOptions,
    Trigger,
    is_stuck,
    oldest_age_s,
    total_work,
)
from service.engines.engine import Engine
from service.engines.errors import EngineBrokenError
from service.errors import DeadlineExceededError, EngineError, StoppingError

_log = logging.getLogger(__name__)

RUN_OVERHEAD_S = 0.003
"""Time that a run costs a busy service beside its execution, whatever its batch size: the worker
reacquires the GIL and takes the next batch, and the event loop wakes up. 2 to 4 ms were measured
(docs/adr/0012-throughput-ceiling.md)."""


class Batcher:
    """Queue and worker threads of one engine.

    ``latency`` models the duration of a run from its work and is updated by each run. ``observer``
    receives runs and cancellations.
    """

    def __init__(
        self, engine: Engine, limits: BatchLimits, latency: LatencyModel, observer: BatchObserver
    ) -> None:
        self._engine = engine
        self._latency = latency
        self._observer = observer
        self._policy = BatchPolicy(limits, latency, engine.concurrency)
        self._queue: list[QueueEntry] = []
        # Guards the queue and the attributes below; idle workers wait for it.
        self._changed = threading.Condition()
        self._stopping = False
        self._broken: EngineBrokenError | None = None
        self._arrivals = ArrivalRate()
        self._runs: dict[int, tuple[float, list[QueueEntry]]] = {}
        self._workers: list[threading.Thread] = []
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Start the workers; call it inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        # Daemon threads: a run that hangs must not keep the process alive.
        self._workers = [
            threading.Thread(
                target=self._work, args=(worker,), name=f"engine_{worker}", daemon=True
            )
            for worker in range(self._engine.concurrency)
        ]
        self._running_workers = len(self._workers)
        for worker in self._workers:
            worker.start()

    async def stop(self) -> None:
        """Reject new inputs, run the queued ones, then close the engine."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._workers:
            await self._ended.wait()
        self._engine.close()

    @property
    def problem(self) -> str | None:
        """Reason no request can succeed until the process is restarted; None if requests can."""
        if self._broken is not None:
            return f"the engine is broken: {self._broken}"
        if not all(worker.is_alive() for worker in self._workers):
            return "a worker thread of the batcher has ended"
        now = time.perf_counter()
        for started_at, batch in list(self._runs.values()):
            expected_s = self._latency.seconds(total_work(batch))
            if is_stuck(now - started_at, expected_s):
                return (
                    f"a run of {len(batch)} images began {now - started_at:.0f} s ago and has not "
                    f"ended; expected were {expected_s:.2g} s"
                )
        return None

    @property
    def depth(self) -> int:
        """Number of queued inputs."""
        return len(self._queue)

    @property
    def oldest_age_s(self) -> float:
        """Seconds that the oldest input has been queued; 0 when the queue is empty."""
        return oldest_age_s([entry.arrived_at for entry in list(self._queue)])

    def new_request(self, scheduling: SchedulingOptions | None = None) -> BatchRequest:
        """Return a request without inputs, for :meth:`put` and :meth:`wait`."""
        return BatchRequest(self._loop.create_future(), scheduling or SchedulingOptions())

    def put(self, request: BatchRequest, inputs: Sequence[BatchInput]) -> None:
        """Queue the inputs of a request, unless it is done; thread-safe.

        Raises :class:`StoppingError` and :class:`EngineError`.
        """
        with self._changed:
            if self._stopping:
                raise StoppingError("The service is shutting down. Send the request again.")
            if self._broken is not None:
                raise _engine_error(self._broken)
            if request.future.done():
                return  # cancelled before its inputs were ready
            request.entries = [QueueEntry(batch_input, request) for batch_input in inputs]
            for entry in request.entries:
                insort(self._queue, entry, key=_sort_key)
                self._arrivals.observe(entry.arrived_at)
            self._changed.notify(len(request.entries))

    def fail(self, request: BatchRequest, error: BaseException) -> None:
        """Make :meth:`wait` raise ``error``; thread-safe."""
        self._call(request.fail, error)

    async def wait(self, request: BatchRequest) -> list[BatchItemOutput]:
        """Return the outputs of all inputs of a request.

        Cancelling the call, or the failure of one input, removes the others from the queue. Raises
        :class:`DeadlineExceededError`, :class:`EngineError` and the error passed to :meth:`fail`.
        """
        try:
            return await request.future
        except BaseException:
            self._remove(request)
            raise
        finally:
            request.entries = []  # breaks the reference cycle between entries and request
            del request

    async def submit(
        self, inputs: Sequence[BatchInput], scheduling: SchedulingOptions | None = None
    ) -> list[BatchItemOutput]:
        """Queue the inputs of one request and return their outputs.

        Raises the exceptions of :meth:`put` and :meth:`wait`.
        """
        request = self.new_request(scheduling)
        self.put(request, inputs)
        return await self.wait(request)

    def _remove(self, request: BatchRequest) -> None:
        with self._changed:
            queued = [entry for entry in request.entries if entry in self._queue]
            for entry in queued:
                self._queue.remove(entry)
            if queued:
                self._changed.notify_all()  # stopping workers wait for an empty queue
        for _ in queued:
            self._observer.cancelled("queue")

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the event loop."""
        with suppress(RuntimeError):  # the loop is closed, and nothing awaits a result any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _work(self, worker: int) -> None:
        """Take batches and run them until the batcher stops; the target of a worker thread."""
        try:
            while (taken := self._take(worker)) is not None:
                outcome = self._run(*taken)
                del self._runs[worker]
                self._call(*outcome)
                del taken, outcome  # an idle worker keeps no images alive
        finally:
            self._call(self._end_worker)

    def _end_worker(self) -> None:
        self._running_workers -= 1
        if not self._running_workers:
            self._ended.set()

    def _take(self, worker: int) -> tuple[list[QueueEntry], Trigger] | None:
        """Wait for a batch to dispatch and remove it from the queue; None once stopped."""
        was_idle = False
        with self._changed:
            while True:
                now = time.perf_counter()
                decision = self._policy.decide(
                    self._queue,
                    self._arrivals,
                    now,
                    was_idle=was_idle,
                    engine_idle=not self._runs,
                    stopping=self._stopping,
                )
                self._expire(decision.expired)
                if decision.trigger is not None:
                    self._start_run(worker, now, decision.batch)
                    return decision.batch, decision.trigger
                if self._stopping and not self._queue:
                    return None
                was_idle, wait_s = True, decision.wait_s
                del decision  # an idle worker keeps no images alive
                self._changed.wait(wait_s)

    def _start_run(self, worker: int, now: float, batch: list[QueueEntry]) -> None:
        for entry in batch:
            self._queue.remove(entry)
        self._runs[worker] = now, batch
        if self._queue:
            self._changed.notify()  # another worker may take the rest

    def _expire(self, entries: Sequence[QueueEntry]) -> None:
        for entry in entries:
            self._queue.remove(entry)
            self._observer.cancelled("queue")
            entry.request.failed = True
            error = DeadlineExceededError(
                "The deadline of the request left no time to run the model, so the request was "
                "dropped. Send it again when the service is less busy, or allow more time."
            )
            self._call(entry.request.fail, error)

    def _run(self, batch: list[QueueEntry], trigger: Trigger) -> tuple[Any, ...]:
        """Run the engine; return the function for the event loop to call, and its arguments."""
        started_at = time.perf_counter()
        try:
            outputs = self._engine.run([entry.input.pixels for entry in batch], batch[0].input.flip)
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
            for entry in batch:
                entry.request.failed = True
            return self._fail_all, batch, error
        infer_s = time.perf_counter() - started_at
        run = BatchRun(trigger, started_at, infer_s, [entry.request.record for entry in batch])
        return self._deliver, batch, outputs, run

    def _fail_all(self, batch: list[QueueEntry], error: Exception) -> None:
        for entry in batch:
            entry.request.fail(_engine_error(error))

    def _deliver(
        self, batch: list[QueueEntry], outputs: Mapping[str, NDArray[Any]], run: BatchRun
    ) -> None:
        """Deliver the outputs to their requests; runs on the event loop."""
        self._latency.observe(total_work(batch), run.infer_s)
        self._observer.batch_done(run)
        is_finite = np.isfinite(outputs["scores"]).reshape(len(batch), -1).all(axis=1).tolist()
        for index, entry in enumerate(batch):
            request = entry.request
            if request.failed:
                continue  # because of another of its inputs
            if request.future.done():
                self._observer.cancelled("infer")
            elif not is_finite[index]:
                _log.error("the engine returned a score that is not finite")
                request.failed = True
                request.fail(_engine_error(ValueError("a score is not finite")))
            else:
                output = {name: values[index] for name, values in outputs.items()}
                queue_s = run.started_at - entry.arrived_at
                entry.output = BatchItemOutput(
                    output, len(batch), run.trigger, queue_s, run.infer_s
                )
                ready = [item.output for item in request.entries if item.output is not None]
                if len(ready) == len(request.entries):
                    request.future.set_result(ready)


_sort_key = attrgetter("sort_key")


def _engine_error(cause: Exception) -> EngineError:
    # One instance per request: a shared exception would collect the tracebacks of all of them.
    error = EngineError(
        "The model could not be run on the batch with this image. Send the request again; if it "
        "keeps failing, see the log of the service for the cause."
    )
    error.__cause__ = cause
    return error
