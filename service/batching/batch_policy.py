"""Batch formation: the next batch of a queue, and the time to dispatch it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.batching.latency_model import ArrivalRate, LatencyModel
from service.batching.types import BatchLimits, BatchRequest, QueueEntry, Trigger, total_work

_MAX_LOAD = 0.9
"""Upper bound of the estimated load, which is measured over few arrivals."""

_DEADLINE_MARGIN_S = 0.01
"""A waiting batch is dispatched this much before its deadline requires it: timers are late."""


@dataclass
class BatchDecision:
    """The next batch of a queue.

    ``trigger``: the reason to dispatch it now; None: wait, for at most ``wait_s`` seconds or, where
    that is None, until the queue changes. ``expired``: entries that cannot meet their deadlines.
    """

    batch: list[QueueEntry] = field(default_factory=list)
    trigger: Trigger | None = None
    wait_s: float | None = None
    expired: list[QueueEntry] = field(default_factory=list)


class BatchPolicy:
    """Policy that chooses the next batch of a queue; it does not modify the queue.

    ``workers``: engine threads that take batches.
    """

    def __init__(self, limits: BatchLimits, latency: LatencyModel, workers: int) -> None:
        self._limits = limits
        self._latency = latency
        self._workers = workers

    def decide(
        self,
        queue: Sequence[QueueEntry],
        arrivals: ArrivalRate,
        now: float,
        *,
        was_idle: bool,
        engine_idle: bool,
        stopping: bool,
    ) -> BatchDecision:
        """Choose the next batch of ``queue``, which is in the order of ``sort_key``.

        ``was_idle``: the calling worker has been waiting. ``engine_idle``: no run is in progress.
        ``stopping``: dispatch without delay.
        """
        decision, earliest = self._collect(queue, now, first_try=was_idle and engine_idle)
        batch = decision.batch
        if not batch:
            return decision
        if decision.trigger is None and stopping:
            decision.trigger = "idle"
        if decision.trigger is None:
            self._set_delay(decision, arrivals, now, earliest)
        if decision.trigger is not None:
            self._cut(decision, queue, arrivals, now)
        return decision

    def _collect(
        self, queue: Sequence[QueueEntry], now: float, *, first_try: bool
    ) -> tuple[BatchDecision, float]:
        """Collect the entries that can share a batch; return them and their earliest deadline.

        ``first_try``: the engine is idle, so an entry whose deadline has not passed is run although
        the latency model says that it is too late: the model could not be corrected otherwise.
        """
        decision = BatchDecision()
        batch = decision.batch
        work, earliest = 0.0, math.inf
        expired: set[BatchRequest] = set()
        for entry in queue:
            if entry.request.is_done or entry.request in expired:
                continue  # removed when the future of the request is resolved
            deadline_at = entry.request.scheduling.deadline_at
            is_first_try = first_try and not batch
            alone_s = 0.0 if is_first_try else self._latency.seconds(entry.input.work)
            done_at = now + self._latency.seconds(work + entry.input.work)
            if deadline_at < now + alone_s:
                decision.expired.append(entry)
                expired.add(entry.request)
            elif batch and entry.kind != batch[0].kind:
                continue
            elif batch and (done_at > earliest or not self._fits(entry, len(batch))):
                decision.trigger = "deadline" if done_at > earliest else "full"
                break
            elif done_at <= deadline_at or is_first_try:
                batch.append(entry)
                work += entry.input.work
                earliest = min(earliest, deadline_at)
        if len(batch) == self._limits.size:
            decision.trigger = "full"
        return decision, earliest

    def _fits(self, entry: QueueEntry, size: int) -> bool:
        height_px, width_px, _ = entry.input.pixels.shape
        pixels = (size + 1) * height_px * width_px
        return size < self._limits.size and pixels <= self._limits.pixels

    def _set_delay(
        self, decision: BatchDecision, arrivals: ArrivalRate, now: float, earliest: float
    ) -> None:
        """Dispatch a batch that is not full, or set how long it may wait for more inputs."""
        batch = decision.batch
        delay_left_s = self._limits.delay_s - (now - min(entry.arrived_at for entry in batch))
        next_size_s = self._latency.seconds(total_work(batch) + batch[-1].input.work)
        slack_s = earliest - now - next_size_s - _DEADLINE_MARGIN_S
        if delay_left_s <= 0:
            decision.trigger = "timeout" if self._limits.delay_s else "idle"
        elif arrivals.expected(delay_left_s) < 1:
            decision.trigger = "idle"
        elif slack_s <= 0:
            decision.trigger = "deadline"
        else:
            decision.wait_s = min(delay_left_s, slack_s)

    def _cut(
        self,
        decision: BatchDecision,
        queue: Sequence[QueueEntry],
        arrivals: ArrivalRate,
        now: float,
    ) -> None:
        """Cut a batch to about the size with the lowest mean latency.

        All inputs of a batch wait for its end, and all inputs behind it for the overhead of the
        run. With m inputs queued per worker and more arriving meanwhile, M = m / (1 - load) inputs
        are affected. In batches of n they are done after (slope * n + base) * (M / n + 1) / 2 on
        average, which is lowest at n = sqrt(M * base / slope). The batch is not cut if
        enough inputs wait to fill all workers or if a queue delay is configured, because throughput
        matters more then.
        """
        batch, limits = decision.batch, self._limits
        slope_s, base_s = self._latency.line
        is_fixed = decision.trigger == "deadline" or limits.delay_s or limits.run_overhead_s is None
        if is_fixed or limits.run_overhead_s is None or not slope_s:
            return
        waiting = len(queue) - len(decision.expired)
        if waiting >= self._workers * limits.size:
            return
        slope_s *= total_work(batch) / len(batch)
        base_s += limits.run_overhead_s
        load = arrivals.expected(slope_s + base_s / limits.size) / self._workers
        affected = waiting / self._workers / (1 - min(load, _MAX_LOAD))
        best = math.sqrt(affected * base_s / slope_s)
        # Powers of two: GPU engines pad to them, and half a step from the optimum costs little.
        size: int = 2 ** round(math.log2(max(1.0, best)))
        # The inputs that are cut off end one run later.
        end_at = now + slope_s * len(batch) + 2 * base_s
        if any(entry.request.scheduling.deadline_at < end_at for entry in batch[size:]):
            return
        if size < len(batch):
            decision.batch, decision.trigger = batch[:size], "idle"
