"""Batch formation, without threads and without waiting."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from service.batching.batch_policy import BatchDecision, BatchPolicy
from service.batching.latency_model import ArrivalRate, LatencyModel
from service.batching.types import (
    BatchInput,
    BatchLimits,
    BatchRequest,
    QueueEntry,
    SchedulingOptions,
)

NOW = 100.0
TENTH_S_PER_INPUT = ((1.0, 0.1), (8.0, 0.8))
TENTH_S_PER_RUN = ((1.0, 0.1), (8.0, 0.1))
HALF_INPUT_PER_RUN = ((1.0, 0.015), (8.0, 0.085))
"""10 ms per input and 5 ms per run."""


def entry(
    deadline_s: float = math.inf, age_s: float = 0.0, side_px: int = 8, flip: bool = False
) -> QueueEntry:
    """Return an entry that has waited ``age_s`` at ``NOW`` and is due ``deadline_s`` later."""
    future: Any = Future()  # the policy reads only done(), which needs no event loop
    request = BatchRequest(future, SchedulingOptions(NOW + deadline_s))
    queued = QueueEntry(BatchInput(np.zeros((side_px, side_px, 3), np.uint8), flip), request)
    queued.arrived_at = queued.sort_key = NOW - age_s
    return queued


def arrivals_per_s(rate: float) -> ArrivalRate:
    arrivals = ArrivalRate()
    arrivals.observe(0.0)
    arrivals.observe(1 / rate)
    return arrivals


def decide(
    queue: Sequence[QueueEntry],
    limits: BatchLimits,
    durations: Sequence[tuple[float, float]] = (),
    *,
    arrivals: ArrivalRate | None = None,
    workers: int = 1,
    is_idle: bool = False,
    stopping: bool = False,
) -> BatchDecision:
    """Decide at ``NOW``; ``durations``: known pairs of batch size and seconds of a run."""
    return BatchPolicy(limits, LatencyModel(durations), workers).decide(
        queue,
        arrivals or ArrivalRate(),
        NOW,
        was_idle=is_idle,
        engine_idle=is_idle,
        stopping=stopping,
    )


def test_an_empty_queue_needs_no_timer() -> None:
    assert decide([], BatchLimits(4, delay_s=1)) == BatchDecision()


def test_dispatches_a_full_batch_in_the_order_of_the_queue() -> None:
    queue = [entry() for _ in range(6)]
    decision = decide(queue, BatchLimits(4, delay_s=1), arrivals=arrivals_per_s(1000))
    assert (decision.batch, decision.trigger) == (queue[:4], "full")
    assert len(queue) == 6, "the queue is not modified"


def test_dispatches_at_once_without_a_queue_delay() -> None:
    queue = [entry(), entry()]
    decision = decide(queue, BatchLimits(4), arrivals=arrivals_per_s(1000))
    assert (decision.batch, decision.trigger) == (queue, "idle")


def test_waits_for_the_rest_of_the_queue_delay_if_inputs_are_expected() -> None:
    queue = [entry(age_s=0.005), entry()]
    decision = decide(queue, BatchLimits(4, delay_s=0.02), arrivals=arrivals_per_s(1000))
    assert decision.trigger is None
    assert decision.wait_s == pytest.approx(0.015)


def test_does_not_wait_if_no_input_is_expected_within_the_queue_delay() -> None:
    limits = BatchLimits(4, delay_s=0.02)
    assert decide([entry()], limits).trigger == "idle"
    assert decide([entry()], limits, arrivals=arrivals_per_s(40)).trigger == "idle"
    assert decide([entry()], limits, arrivals=arrivals_per_s(60)).trigger is None


def test_dispatches_when_the_queue_delay_is_over() -> None:
    queue = [entry(age_s=0.03), entry()]
    decision = decide(queue, BatchLimits(4, delay_s=0.02), arrivals=arrivals_per_s(1000))
    assert (decision.batch, decision.trigger) == (queue, "timeout")


def test_does_not_wait_while_stopping() -> None:
    limits = BatchLimits(4, delay_s=1)
    decision = decide([entry()], limits, arrivals=arrivals_per_s(1000), stopping=True)
    assert decision.trigger == "idle"


def test_waits_until_shortly_before_the_earliest_deadline_requires_the_run() -> None:
    limits, arrivals = BatchLimits(8, delay_s=10), arrivals_per_s(1000)
    waiting = decide([entry(0.5), entry()], limits, TENTH_S_PER_RUN, arrivals=arrivals)
    assert waiting.trigger is None
    assert waiting.wait_s == pytest.approx(0.5 - 0.1 - 0.01), "10 ms early"
    due = decide([entry(0.105), entry()], limits, TENTH_S_PER_RUN, arrivals=arrivals)
    assert (len(due.batch), due.trigger) == (2, "deadline")


def test_the_earliest_deadline_limits_the_batch_size() -> None:
    queue = [entry(0.25), *(entry() for _ in range(4))]
    decision = decide(queue, BatchLimits(8, delay_s=1), TENTH_S_PER_INPUT)
    assert (decision.batch, decision.trigger) == (queue[:2], "deadline")


def test_entries_that_cannot_meet_their_deadline_expire() -> None:
    queue = [entry(0.05), entry(0.15), entry(-0.001), entry()]
    decision = decide(queue, BatchLimits(1), TENTH_S_PER_INPUT)
    assert decision.batch == [queue[1]]
    assert decision.expired == [queue[0], queue[2]]


@pytest.mark.parametrize(("is_idle", "runs"), [(True, True), (False, False)])
def test_an_idle_engine_tries_the_first_entry_that_is_expected_to_be_late(
    is_idle: bool, runs: bool
) -> None:
    first, second = entry(0.05), entry(0.05)
    decision = decide([first, second], BatchLimits(4), TENTH_S_PER_INPUT, is_idle=is_idle)
    assert decision.batch == ([first] if runs else [])
    assert decision.expired == ([second] if runs else [first, second])


def test_an_idle_engine_does_not_run_entries_whose_deadline_has_passed() -> None:
    late = entry(-0.001)
    decision = decide([late], BatchLimits(4), TENTH_S_PER_INPUT, is_idle=True)
    assert (decision.batch, decision.expired) == ([], [late])


def test_different_kinds_do_not_share_a_batch() -> None:
    queue = [entry(), entry(side_px=16), entry(flip=True), entry()]
    assert decide(queue, BatchLimits(4)).batch == [queue[0], queue[3]]


def test_entries_of_requests_that_are_done_are_ignored() -> None:
    cancelled, failed, remaining = entry(-1), entry(), entry()
    cancelled.request.future.cancel()
    failed.request.failed = True
    decision = decide([cancelled, failed, remaining], BatchLimits(4))
    assert (decision.batch, decision.expired) == ([remaining], [])


def test_pixels_limit_the_batch_but_a_single_input_always_runs() -> None:
    limits = BatchLimits(8, delay_s=1, pixels=2 * 8 * 8)
    queue = [entry() for _ in range(3)]
    decision = decide(queue, limits)
    assert (decision.batch, decision.trigger) == (queue[:2], "full")
    large = [entry(side_px=64), entry(side_px=64)]
    assert decide(large, limits).batch == large[:1]


@pytest.mark.parametrize(
    ("limits", "workers", "size"),
    [
        # sqrt(8 * 0.6) = 2.2 for a run overhead of 5 + 1 ms, to the nearest power of two.
        (BatchLimits(10, run_overhead_s=0.001), 1, 2),
        # sqrt(4 * 0.6) = 1.5, because two workers share the inputs.
        (BatchLimits(10, run_overhead_s=0.001), 2, 2),
        # sqrt(8 * 3.5) = 5.3 for a run overhead of 5 + 30 ms.
        (BatchLimits(10, run_overhead_s=0.030), 1, 4),
        # Enough inputs wait to fill the batch.
        (BatchLimits(8, run_overhead_s=0.001), 1, 8),
        # Without an overhead, or with a queue delay, batches are as large as possible.
        (BatchLimits(10), 1, 8),
        (BatchLimits(10, delay_s=0.02, run_overhead_s=0.001), 1, 8),
    ],
)
def test_cuts_a_batch_to_the_size_with_the_lowest_mean_latency(
    limits: BatchLimits, workers: int, size: int
) -> None:
    queue = [entry() for _ in range(8)]
    assert decide(queue, limits, HALF_INPUT_PER_RUN, workers=workers).batch == queue[:size]


def test_does_not_cut_off_an_input_that_would_miss_its_deadline() -> None:
    # One batch of 8 ends after 85 ms, two end after 92 ms (8 * 10 + 2 * 6).
    limits = BatchLimits(10, run_overhead_s=0.001)
    for deadline_s, size in ((0.091, 8), (0.093, 2)):
        queue = [entry(deadline_s) for _ in range(8)]
        assert len(decide(queue, limits, HALF_INPUT_PER_RUN).batch) == size
