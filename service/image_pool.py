"""Threads that decode images, shared by all models."""

import math
import threading
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

from service.batching.types import SchedulingOptions, is_stuck, oldest_age_s
from service.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    ImageSizeError,
    StoppingError,
)
from service.imaging.types import DecodingCost

NO_COST = DecodingCost(0, 0.0)
COST_WEIGHT = 10.0
"""Seconds that each stated CPU second of a task is worth in the queue. Images that cost little are
decoded before expensive ones that arrived earlier; the longest delay is bounded by the cost."""
CHEAP_S = 0.25
"""Stated CPU seconds up to which a task is cheap: a JPEG of about four megapixels."""
_DECAY = 0.99

_Result = TypeVar("_Result")


@dataclass
class _Task:
    key: float
    arrived_at: float
    deadline_at: float
    cost: DecodingCost
    function: Callable[[], Any]
    future: "Future[Any]" = field(default_factory=Future)


_sort_key, _end = attrgetter("key"), itemgetter(0)


class ImagePool:
    """Threads that run tasks by priority and cost, within a budget of memory.

    Tasks start in order, each when the stated memory of the running tasks, together with its own,
    is at most ``memory_bytes``. One of the ``threads``, of which there are at least two, runs cheap
    tasks only, which therefore wait for the end of an expensive one for its memory only: native
    decoders cannot be interrupted. A task that exceeds its stated CPU time
    (:mod:`service.imaging.decoding_cost`) by far is reported by :attr:`problem`.
    """

    def __init__(self, threads: int, memory_bytes: float = math.inf) -> None:
        self._expensive_limit = max(1, threads - 1)
        self._memory_bytes = memory_bytes
        self._queue: list[_Task] = []
        # Guards the queue and the attributes below; idle threads wait for it.
        self._changed = threading.Condition()
        self._running: dict[int, tuple[float, DecodingCost]] = {}
        self._closed = False
        self._stated_s = self._measured_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, args=(index,), name=f"images_{index}", daemon=True)
            for index in range(self._expensive_limit + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def held_bytes(self) -> int:
        """Stated memory of the running tasks."""
        return sum(cost.memory_bytes for _, cost in list(self._running.values()))

    @property
    def depth(self) -> int:
        """Number of queued tasks."""
        return len(self._queue)

    @property
    def oldest_age_s(self) -> float:
        """Seconds that the oldest task has been queued; 0 when the queue is empty."""
        return oldest_age_s([task.arrived_at for task in list(self._queue)])

    @property
    def problem(self) -> str | None:
        """Reason the process must be restarted; None if it need not be."""
        now = time.perf_counter()
        for started_at, cost in list(self._running.values()):
            if is_stuck(now - started_at, cost.cpu_s):
                return (
                    f"decoding an image began {now - started_at:.0f} s ago and has not ended; "
                    f"expected were at most {cost.cpu_s:.2g} s of CPU time"
                )
        return None

    def submit(
        self,
        function: Callable[[], _Result],
        scheduling: SchedulingOptions,
        cost: DecodingCost = NO_COST,
    ) -> "Future[_Result]":
        """Queue a call of ``function``; cancelling the future removes it from the queue.

        The call never begins after the deadline: the future then raises
        :class:`DeadlineExceededError`.

        Raises :class:`ImageSizeError` if the cost exceeds the whole budget,
        :class:`DeadlineUnreachableError` if the call is expected to begin after the deadline, and
        :class:`StoppingError` after :meth:`close`.
        """
        if cost.memory_bytes > self._memory_bytes:
            raise ImageSizeError(
                f"Decoding the image could take {cost.memory_bytes} bytes of memory; at most "
                f"{self._memory_bytes} are accepted. Scale the image down."
            )
        now = time.perf_counter()
        key = now - scheduling.priority_offset_s + COST_WEIGHT * cost.cpu_s
        task = _Task(key, now, scheduling.deadline_at, cost, function)
        with self._changed:
            if self._closed:
                raise StoppingError("The service is shutting down. Send the request again.")
            left_s = max(0.0, scheduling.deadline_at - now)
            # The simulation takes time in proportion to the length of the queue.
            wait_s = self._wait_s(task) if self._longest_wait_s() > left_s else 0.0
            if wait_s > left_s:
                raise DeadlineUnreachableError(
                    f"The images before this one would take about {1000 * wait_s:.0f} ms to "
                    f"decode, and the request allows {1000 * left_s:.0f} ms more. Send it again "
                    "after the time in Retry-After, or allow more time.",
                    retry_after_s=max(1, round(wait_s)),
                )
            insort(self._queue, task, key=_sort_key)
            self._changed.notify()
        task.future.add_done_callback(self._remove)
        return task.future

    def close(self) -> None:
        """End the threads after their current tasks; queued tasks are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for task in list(self._queue):
            task.future.cancel()

    def _longest_wait_s(self) -> float:
        """Return an upper bound of :meth:`_wait_s`: all tasks run one after the other."""
        running_s = sum(cost.cpu_s for _, cost in self._running.values())
        return self._ratio * (running_s + sum(task.cost.cpu_s for task in self._queue))

    @property
    def _ratio(self) -> float:
        """Measured ratio of the elapsed to the stated time of the tasks."""
        return self._measured_s / self._stated_s if self._stated_s else 0.0

    def _wait_s(self, new: _Task) -> float:
        """Return the expected seconds until the task begins.

        Each task is expected to take its stated CPU time, scaled by the measured ratio of elapsed
        to stated time. Expensive tasks do not delay cheap ones, nor do those that will be late.
        """
        ratio = self._ratio
        running = sorted(
            (
                (max(0.0, started_at + ratio * cost.cpu_s - new.arrived_at), cost)
                for started_at, cost in self._running.values()
            ),
            key=_end,
        )
        begins_s = 0.0
        for task in (*self._queue[: bisect_right(self._queue, new.key, key=_sort_key)], new):
            if _is_cheap(new.cost) and not _is_cheap(task.cost):
                continue
            while not self._may_start(task.cost, [cost for _, cost in running]):
                begins_s, _ = running.pop(0)
            if new.arrived_at + begins_s <= task.deadline_at:
                insort(running, (begins_s + ratio * task.cost.cpu_s, task.cost), key=_end)
        return begins_s

    def _remove(self, future: "Future[Any]") -> None:
        if future.cancelled():
            with self._changed:
                self._queue = [task for task in self._queue if task.future is not future]
                self._changed.notify_all()

    def _work(self, index: int) -> None:
        while (task := self._take(index)) is not None:
            _run(task)
            with self._changed:
                started_at, cost = self._running.pop(index)
                self._measured_s = _DECAY * self._measured_s + time.perf_counter() - started_at
                self._stated_s = _DECAY * self._stated_s + cost.cpu_s
                self._changed.notify_all()
            del task  # an idle thread keeps no image alive

    def _take(self, index: int) -> _Task | None:
        """Wait for a task that may start, and remove it from the queue; None once closed."""
        with self._changed:
            while not self._closed:
                task = self._pop()
                if task is None:
                    self._changed.wait()
                    continue
                if not task.future.set_running_or_notify_cancel():
                    continue
                now = time.perf_counter()
                if now > task.deadline_at:
                    task.future.set_exception(_deadline_exceeded())
                    continue
                self._running[index] = now, task.cost
                return task
            return None

    def _pop(self) -> _Task | None:
        """Remove the first task that may start; tasks behind one that waits for memory wait too."""
        running = [cost for _, cost in self._running.values()]
        for index, task in enumerate(self._queue):
            if self._has_thread(task.cost, running):
                return self._queue.pop(index) if self._may_start(task.cost, running) else None
        return None

    def _may_start(self, cost: DecodingCost, running: Sequence[DecodingCost]) -> bool:
        held_bytes = sum(other.memory_bytes for other in running)
        return (
            self._has_thread(cost, running) and held_bytes + cost.memory_bytes <= self._memory_bytes
        )

    def _has_thread(self, cost: DecodingCost, running: Sequence[DecodingCost]) -> bool:
        expensive = sum(not _is_cheap(other) for other in running)
        return len(running) < len(self._threads) and (
            _is_cheap(cost) or expensive < self._expensive_limit
        )


def _is_cheap(cost: DecodingCost) -> bool:
    return cost.cpu_s <= CHEAP_S


def _deadline_exceeded() -> DeadlineExceededError:
    return DeadlineExceededError(
        "The deadline of the request passed before its image was decoded, so the request was "
        "dropped. Send it again when the service is less busy, or allow more time."
    )


def _run(task: _Task) -> None:
    try:
        result = task.function()
    except BaseException as error:  # of any type: the caller must receive it
        task.future.set_exception(error)
        del task  # breaks the reference cycle with the exception
    else:
        task.future.set_result(result)
