"""Dynamic batching: requests that arrive while the engine is busy share its next run.

One task owns the queue and forms batches; one thread owns the engine. The busy time of the engine
is the batching window, so an idle engine never waits. Nothing here decodes or allocates per
request: what comes in is ready to be stacked, so one bad picture cannot spoil its neighbours.

Only inputs of one shape and one variant of the graph can share a batch. The oldest input decides
which; those of its kind join it in the order of their arrival, the others keep their places. So
whatever arrives later, each batch brings every waiting input nearer to being the oldest.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engines import Engine
from service.errors import EngineError, StoppingError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchRow:
    """One image's share of a batch: its outputs without the batch axis, and how it got there."""

    outputs: Mapping[str, NDArray[Any]]
    batch_size: int
    queue_s: float
    infer_s: float


@dataclass(frozen=True)
class BatchInput:
    """One network input: ``pixels`` uint8 (height, width, 3), and the variant of the graph."""

    pixels: NDArray[np.uint8]
    flip: bool = False


@dataclass
class _Waiting:
    input: BatchInput
    future: "asyncio.Future[BatchRow]"
    arrived_at: float = field(default_factory=time.perf_counter)

    @property
    def kind(self) -> tuple[bool, tuple[int, ...]]:
        """What all inputs of a batch have in common."""
        return self.input.flip, self.input.pixels.shape


class Batcher:
    """Queue, batch former and engine thread of one model.

    ``on_batch(batch_size, infer_s)`` is called after each successful run. ``max_batch_pixels``
    bounds the memory of a run where inputs may be larger than usual; a single one always runs.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch_size: int,
        on_batch: Callable[[int, float], None],
        max_batch_pixels: float = math.inf,
    ) -> None:
        self._engine = engine
        self._max_batch_size = max_batch_size
        self._max_batch_pixels = max_batch_pixels
        self._on_batch = on_batch
        self._queue: deque[_Waiting] = deque()
        self._work = asyncio.Event()
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve; call it inside the running event loop."""
        self._task = asyncio.create_task(self._serve(), name="batcher")

    async def stop(self) -> None:
        """Refuse new work, finish what is queued, end the engine thread."""
        self._stopping = True
        self._work.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    @property
    def is_serving(self) -> bool:
        """Whether somebody takes work from the queue."""
        return self._task is not None and not self._task.done()

    @property
    def depth(self) -> int:
        """Requests waiting for a batch."""
        return len(self._queue)

    async def submit(self, inputs: Sequence[BatchInput]) -> list[BatchRow]:
        """Wait for the outputs of all inputs of one request.

        Cancelling the call, or the failure of one of them, takes the rest out of the queue.
        Raises :class:`StoppingError` and :class:`EngineError`.
        """
        if self._stopping:
            raise StoppingError("The service is shutting down. Send the request again elsewhere.")
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(one, loop.create_future()) for one in inputs]
        self._queue.extend(waiting)
        self._work.set()
        try:
            return await asyncio.gather(*(one.future for one in waiting))
        finally:
            for one in waiting:
                one.future.cancel()

    async def _serve(self) -> None:
        while True:
            batch = self._take_batch()
            if batch:
                await self._run(batch)
            elif self._stopping:
                return
            else:
                self._work.clear()
                await self._work.wait()

    def _take_batch(self) -> list[_Waiting]:
        """Take the oldest input that somebody still waits for, and the next ones of its kind."""
        batch: list[_Waiting] = []
        passed_over: list[_Waiting] = []
        while self._queue and len(batch) < self._max_batch_size:
            waiting = self._queue.popleft()
            if waiting.future.done():
                continue
            if not batch or self._fits(waiting, batch):
                batch.append(waiting)
            else:
                passed_over.append(waiting)
        self._queue.extendleft(reversed(passed_over))
        return batch

    def _fits(self, waiting: _Waiting, batch: list[_Waiting]) -> bool:
        if waiting.kind != batch[0].kind:
            return False
        height_px, width_px, _ = waiting.input.pixels.shape
        pixels = (len(batch) + 1) * height_px * width_px
        return bool(pixels <= self._max_batch_pixels)

    async def _run(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        started_at = time.perf_counter()
        try:
            outputs = await loop.run_in_executor(self._thread, self._run_engine, batch)
            infer_s = time.perf_counter() - started_at
            self._on_batch(len(batch), infer_s)
        except Exception as error:
            _log.exception("the engine failed on a batch of %d", len(batch))
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(_engine_error(error))
            return
        for index, waiting in enumerate(batch):
            # A request that gave up meanwhile has a cancelled future, which takes no result.
            if not waiting.future.done():
                row = {name: values[index] for name, values in outputs.items()}
                queue_s = started_at - waiting.arrived_at
                waiting.future.set_result(BatchRow(row, len(batch), queue_s, infer_s))

    def _run_engine(self, batch: list[_Waiting]) -> Mapping[str, NDArray[Any]]:
        pixels = np.stack([waiting.input.pixels for waiting in batch])
        outputs = self._engine.run(pixels, batch[0].input.flip)
        for name, values in outputs.items():
            if len(values) != len(batch):
                raise RuntimeError(
                    f"output {name} has {len(values)} rows for a batch of {len(batch)}"
                )
        return outputs


def _engine_error(cause: Exception) -> EngineError:
    # One instance per request: a shared exception would collect every waiter's traceback.
    error = EngineError(
        "The model could not be run on the batch that held this image. Try again; "
        "if it stays so, the service's log has the cause."
    )
    error.__cause__ = cause
    return error
