"""The batcher without a server: batches, deadlines, priorities, cancellation and failures."""

import asyncio
import gc
import math
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import ColourEngine, GatedEngine

from service.async_detector import run_prepared
from service.batching.batcher import Batcher
from service.batching.latency_model import LatencyModel
from service.batching.types import (
    BatchInput,
    BatchItemOutput,
    BatchLimits,
    BatchRun,
    SchedulingOptions,
)
from service.engines import Engine, Images
from service.engines.errors import EngineBrokenError
from service.errors import DeadlineExceededError, EngineError, StoppingError
from service.image_pool import ImagePool
from service.imaging.types import DecodingCost


class RecordingObserver:
    """Observer that records the triggers of batches and the stages of cancellations."""

    def __init__(self) -> None:
        self.triggers: list[str] = []
        self.cancelled_stages: list[str] = []

    def batch_done(self, run: BatchRun) -> None:
        self.triggers.append(run.trigger)

    def cancelled(self, stage: str) -> None:
        self.cancelled_stages.append(stage)


def image(value: int, side_px: int = 8, flip: bool = False) -> BatchInput:
    return BatchInput(np.full((side_px, side_px, 3), value, np.uint8), flip)


def run(
    engine: Engine,
    test: Callable[[Batcher], Awaitable[None]],
    limits: BatchLimits | None = None,
    latency_model: LatencyModel | None = None,
) -> RecordingObserver:
    """Run ``test`` with a started batcher, stop it and return its observer; at most 20 s."""
    observer = RecordingObserver()

    async def main() -> None:
        batcher = Batcher(
            engine, limits or BatchLimits(4), latency_model or LatencyModel(), observer
        )
        batcher.start()
        async with asyncio.timeout(20):
            try:
                await test(batcher)
            finally:
                await batcher.stop()

    asyncio.run(main())
    return observer


async def submit(batcher: Batcher, value: int) -> BatchItemOutput:
    (item,) = await batcher.submit([image(value)])
    return item


def center_of(item: BatchItemOutput) -> float:
    return float(item.outputs["centers"][0, 0])


async def wait_for_run(engine: GatedEngine) -> None:
    assert await asyncio.to_thread(engine.entered.acquire, timeout=10)


def fixed_latency(seconds_per_input: float) -> LatencyModel:
    """Return a latency model that ignores observations."""
    latency_model = LatencyModel([(1, seconds_per_input), (8, 8 * seconds_per_input)])
    latency_model.observe = lambda *_: None  # type: ignore[method-assign]
    return latency_model


def test_requests_during_a_run_are_batched_in_order_of_arrival() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await wait_for_run(engine)
        rest = [asyncio.create_task(submit(batcher, value)) for value in range(1, 8)]
        await asyncio.sleep(0)
        assert batcher.depth == 7
        engine.gate.set()
        items = await asyncio.gather(first, *rest)
        assert [center_of(item) for item in items] == list(range(8))
        assert [item.batch_size for item in items] == [1, 4, 4, 4, 4, 3, 3, 3]
        assert all(item.queue_s >= 0 for item in items)

    run(engine, test)
    assert engine.batch_sizes == [1, 4, 3]


def test_a_cancelled_request_leaves_the_queue() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await wait_for_run(engine)
        cancelled = asyncio.create_task(submit(batcher, 1))
        remaining = asyncio.create_task(submit(batcher, 2))
        await asyncio.sleep(0)
        cancelled.cancel()
        engine.gate.set()
        assert center_of(await remaining) == 2
        await first

    run(engine, test)
    assert engine.batch_sizes == [1, 1]


def test_a_request_cancelled_during_its_run_does_not_affect_others() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        cancelled = asyncio.create_task(submit(batcher, 1))
        await wait_for_run(engine)
        cancelled.cancel()
        engine.gate.set()
        assert center_of(await submit(batcher, 2)) == 2

    run(engine, test)


class FaultyEngine(ColourEngine):
    """Engine whose outputs pass through ``fault`` while ``faulty`` is set."""

    def __init__(self, fault: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]):
        super().__init__()
        self.fault = fault
        self.faulty = True

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        outputs = super().run(images, flip)
        return self.fault(outputs) if self.faulty else outputs


def raise_error(_: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    raise RuntimeError("no memory")


def drop_a_row(outputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return {**outputs, "sizes": outputs["sizes"][1:]}


@pytest.mark.parametrize("fault", [raise_error, drop_a_row])
def test_a_failed_run_fails_only_its_requests(
    fault: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FaultyEngine(fault)

    async def test(batcher: Batcher) -> None:
        results = await asyncio.gather(
            *(submit(batcher, value) for value in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [EngineError] * 3
        assert len({id(result) for result in results}) == 3
        engine.faulty = False
        assert center_of(await submit(batcher, 9)) == 9

    run(engine, test)
    assert "the engine failed on a batch of" in caplog.text


def test_stop_finishes_queued_requests_and_rejects_new_ones() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        queued = [asyncio.create_task(submit(batcher, value)) for value in range(6)]
        await wait_for_run(engine)
        stop = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(StoppingError):
            await submit(batcher, 7)
        engine.gate.set()
        assert [center_of(item) for item in await asyncio.gather(*queued)] == list(range(6))
        await stop

    run(engine, test)


class RecordingEngine(GatedEngine):
    """Gated engine that records size, side in pixels and variant of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[tuple[int, int, bool]] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.kinds.append((len(images), images[0].shape[0], flip))
        return super().run(images, flip)


def test_a_batch_has_one_kind_of_input_and_the_oldest_goes_first() -> None:
    engine = RecordingEngine()
    inputs = [
        *(image(1, 8), image(2, 16), image(3, 8), image(4, 8, flip=True), image(5, 16)),
        *(image(6, 8), image(7, 8, flip=True)),
    ]

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await wait_for_run(engine)
        rest = [asyncio.create_task(batcher.submit([batch_input])) for batch_input in inputs]
        await asyncio.sleep(0)
        engine.gate.set()
        items = await asyncio.gather(*rest)
        assert [center_of(item) for (item,) in items] == [1, 2, 3, 4, 5, 6, 7]
        await first

    run(engine, test)
    # Three inputs are of the kind of the oldest; then come the next oldest and its kind.
    assert engine.kinds[1:] == [(3, 8, False), (2, 16, False), (2, 8, True)]


def test_an_input_does_not_starve_behind_a_stream_of_another_kind() -> None:
    engine = RecordingEngine()

    async def test(batcher: Batcher) -> None:
        stream = [asyncio.create_task(submit(batcher, value)) for value in range(2)]
        await wait_for_run(engine)
        rare = asyncio.create_task(batcher.submit([image(9, 16)]))
        stream += [asyncio.create_task(submit(batcher, value)) for value in range(20)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(rare, *stream)

    run(engine, test, BatchLimits(2))
    assert engine.kinds[1] == (1, 16, False)


def test_large_inputs_form_small_batches() -> None:
    engine = RecordingEngine()

    engine.gate.set()

    async def test(batcher: Batcher) -> None:
        sides = (16, 16, 16, 32, 8, 8)
        await batcher.submit([image(side, side) for side in sides])

    run(engine, test, BatchLimits(8, pixels=2 * 16 * 16))
    assert sorted(engine.kinds) == [(1, 16, False), (1, 32, False), (2, 8, False), (2, 16, False)]


def test_the_inputs_of_one_request_are_cancelled_together() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        several = asyncio.create_task(batcher.submit([image(value) for value in range(4)]))
        await wait_for_run(engine)
        assert batcher.depth == 3, "the first is running"
        several.cancel()
        await asyncio.sleep(0)
        assert batcher.depth == 0
        last = asyncio.create_task(submit(batcher, 9))
        await asyncio.sleep(0)
        engine.gate.set()
        assert center_of(await last) == 9
        items = await batcher.submit([image(value) for value in range(3)])
        assert [center_of(item) for item in items] == [0, 1, 2]

    run(engine, test, BatchLimits(1))
    assert engine.batch_sizes == [1] * 5


def test_a_failed_input_fails_its_request_and_removes_its_other_inputs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FaultyEngine(raise_error)

    async def test(batcher: Batcher) -> None:
        with pytest.raises(EngineError):
            await batcher.submit([image(value) for value in range(3)])
        engine.faulty = False
        assert center_of(await submit(batcher, 9)) == 9

    run(engine, test, BatchLimits(1))
    assert caplog.text.count("the engine failed on a batch of 1") <= 2
    assert engine.batch_sizes[-1] == 1


class TwoWorkerEngine(GatedEngine):
    """Gated engine that accepts two concurrent runs."""

    concurrency = 2


def test_two_batches_run_at_a_time_if_the_engine_accepts_two() -> None:
    engine = TwoWorkerEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 1))
        await wait_for_run(engine)
        second = asyncio.create_task(submit(batcher, 2))
        await wait_for_run(engine)
        third = asyncio.create_task(submit(batcher, 3))
        await asyncio.sleep(0.05)
        assert batcher.depth == 1, "there is no third worker"
        engine.gate.set()
        items = await asyncio.gather(first, second, third)
        assert [center_of(item) for item in items] == [1, 2, 3]

    observer = run(engine, test, BatchLimits(4))
    assert observer.triggers == ["idle"] * 3


def test_a_full_batch_is_dispatched_at_once_and_the_last_after_its_delay() -> None:
    async def test(batcher: Batcher) -> None:
        items = await batcher.submit([image(value) for value in range(6)])
        assert [item.batch_size for item in items] == [4, 4, 4, 4, 2, 2]
        assert items[-1].queue_s >= 0.2

    observer = run(ColourEngine(), test, BatchLimits(4, delay_s=0.2))
    assert observer.triggers == ["full", "timeout"]


def test_a_batch_does_not_wait_for_inputs_that_are_not_expected() -> None:
    async def test(batcher: Batcher) -> None:
        for value in range(3):
            await submit(batcher, value)
            await asyncio.sleep(0.05)

    # Three arrivals 50 ms apart: none is expected within the queue delay of 20 ms.
    observer = run(ColourEngine(), test, BatchLimits(4, delay_s=0.02))
    assert observer.triggers[1:] == ["idle", "idle"]


def test_a_batch_is_dispatched_before_its_earliest_deadline_is_missed() -> None:
    async def test(batcher: Batcher) -> None:
        scheduling = SchedulingOptions(deadline_at=time.perf_counter() + 0.5)
        await asyncio.gather(
            batcher.submit([image(1)], scheduling), *(submit(batcher, value) for value in range(2))
        )

    run_latency = LatencyModel([(1, 0.1), (8, 0.1)])
    observer = run(ColourEngine(), test, BatchLimits(8, delay_s=10), run_latency)
    assert observer.triggers == ["deadline"]


def test_the_earliest_deadline_limits_the_batch_size() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await wait_for_run(engine)
        urgent = SchedulingOptions(deadline_at=time.perf_counter() + 2.5)
        rest = [asyncio.create_task(batcher.submit([image(1)], urgent))]
        rest += [asyncio.create_task(batcher.submit([image(value)])) for value in range(2, 6)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *rest)

    # The model expects one second per input: two are done in time, five are not.
    observer = run(engine, test, BatchLimits(8), fixed_latency(1.0))
    assert engine.batch_sizes == [1, 2, 3]
    assert observer.triggers == ["idle", "deadline", "idle"]


@pytest.mark.parametrize(
    ("allowed_s", "latency_model"), [(0.01, LatencyModel()), (5, fixed_latency(3600))]
)
def test_an_input_that_cannot_meet_its_deadline_is_never_run(
    allowed_s: float, latency_model: LatencyModel
) -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await wait_for_run(engine)
        late = SchedulingOptions(deadline_at=time.perf_counter() + allowed_s)
        expiring = asyncio.create_task(batcher.submit([image(1)], late))
        await asyncio.sleep(0.02)
        engine.gate.set()
        await first
        with pytest.raises(DeadlineExceededError, match="left no time"):
            await expiring

    observer = run(engine, test, BatchLimits(4), latency_model)
    assert engine.batch_sizes == [1]
    assert observer.cancelled_stages == ["queue"]


def test_an_idle_engine_runs_an_input_that_is_expected_to_be_late() -> None:
    async def test(batcher: Batcher) -> None:
        for value in range(3):
            scheduling = SchedulingOptions(deadline_at=time.perf_counter() + 10)
            (item,) = await batcher.submit([image(value)], scheduling)
            assert center_of(item) == value

    run(ColourEngine(), test, BatchLimits(4), LatencyModel([(1, 3600.0)]))


def test_counts_inputs_cancelled_in_the_queue_and_during_their_run() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        running = asyncio.create_task(submit(batcher, 0))
        await wait_for_run(engine)
        queued = asyncio.create_task(submit(batcher, 1))
        await asyncio.sleep(0)
        running.cancel()
        queued.cancel()
        await asyncio.sleep(0.01)
        assert batcher.depth == 0
        engine.gate.set()

    observer = run(engine, test, BatchLimits(4))
    assert observer.cancelled_stages == ["queue", "infer"]


def test_priorities_change_the_order_by_a_bounded_time() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        order: list[str] = []

        async def submit_named(name: str, priority_offset_s: float) -> None:
            await batcher.submit([image(1)], SchedulingOptions(priority_offset_s=priority_offset_s))
            order.append(name)

        first = asyncio.create_task(submit_named("first", 0))
        await wait_for_run(engine)
        rest = []
        for name, priority_offset_s in (("old low", -0.1), ("normal", 0.0), ("high", 0.1)):
            rest.append(asyncio.create_task(submit_named(name, priority_offset_s)))
        await asyncio.sleep(0.3)
        rest.append(asyncio.create_task(submit_named("new high", 0.1)))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *rest)
        assert order == ["first", "high", "normal", "old low", "new high"]

    run(engine, test, BatchLimits(1))


def test_a_broken_engine_fails_every_request_and_reports_a_problem(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def break_engine(_: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        raise EngineBrokenError("an illegal memory access was encountered")

    engine = FaultyEngine(break_engine)

    async def test(batcher: Batcher) -> None:
        assert batcher.problem is None
        results = await asyncio.gather(
            *(submit(batcher, value) for value in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [EngineError] * 3
        assert batcher.problem == "the engine is broken: an illegal memory access was encountered"
        with pytest.raises(EngineError):
            await submit(batcher, 9)

    run(engine, test, BatchLimits(1))
    assert engine.batch_sizes == [1], "a broken engine is not run again"
    assert "the engine failed" in caplog.text


def test_a_run_that_does_not_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = GatedEngine()
    monkeypatch.setattr("service.batching.types.STUCK_AFTER_S", 0.05)

    async def test(batcher: Batcher) -> None:
        running = asyncio.create_task(submit(batcher, 0))
        await wait_for_run(engine)
        await asyncio.sleep(0.1)
        assert "has not ended" in str(batcher.problem)
        engine.gate.set()
        await running
        assert batcher.problem is None

    run(engine, test, BatchLimits(1))


def test_a_nan_score_fails_only_its_image() -> None:
    def nan_for_the_first(outputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        outputs["scores"][0] = np.nan
        return outputs

    async def test(batcher: Batcher) -> None:
        several = [submit(batcher, value) for value in range(3)]
        results = await asyncio.gather(*several, return_exceptions=True)
        assert type(results[0]) is EngineError
        assert [center_of(item) for item in results[1:]] == [1, 2]  # type: ignore[arg-type]

    run(FaultyEngine(nan_for_the_first), test, BatchLimits(3, delay_s=1))


class FixedLatencyModel(LatencyModel):
    """Model that ignores observations; the base of a run is the time of half an image."""

    def __init__(self, image_s: float) -> None:
        super().__init__([(1, 1.5 * image_s), (8, 8.5 * image_s)])

    def observe(self, n: float, seconds: float) -> None:
        """Do nothing: the gate distorts the durations."""


def sizes_of(
    waiting: int,
    limits: BatchLimits,
    rate: float,
    workers: int = 1,
    image_s: float = 0.01,
    within_s: float = math.inf,
) -> list[int]:
    """Return the sizes of the batches of ``waiting`` inputs, queued behind one run per worker.

    ``rate``: expected arrivals per second.
    """
    engine = GatedEngine()
    engine.concurrency = workers

    async def test(batcher: Batcher) -> None:
        first = [asyncio.create_task(submit(batcher, value)) for value in range(workers)]
        for _ in first:
            await wait_for_run(engine)
        scheduling = SchedulingOptions(time.perf_counter() + within_s)
        rest = [
            asyncio.create_task(batcher.submit([image(value)], scheduling))
            for value in range(waiting)
        ]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(*first, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "service.batching.latency_model.ArrivalRate.expected", lambda _, seconds: rate * seconds
        )
        run(engine, test, limits, FixedLatencyModel(image_s))
    sizes = sorted(engine.batch_sizes, reverse=True)
    assert sizes[-workers:] == [1] * workers
    return sizes[:-workers]


def test_batch_sizes_minimize_the_mean_latency() -> None:
    limits = BatchLimits(10, run_overhead_s=0.001)  # 6 ms with the base of the model
    # sqrt(8 * 0.6) of 8, sqrt(6 * 0.6) of 6, and so on, to the nearest power of two.
    assert sizes_of(8, limits, 0) == [2, 2, 2, 1, 1]
    # Load 0.5, with 10.6 ms of engine time per arrival: twice as many inputs are affected.
    assert sizes_of(8, limits, 0.5 / 0.0106) == [4, 2, 2]
    # The load counts as 0.9 at most.
    assert sizes_of(9, limits, 1000) == [8, 1]
    # Two workers share the waiting and the arriving inputs.
    assert sizes_of(8, limits, 0, workers=2) == [2, 1, 1, 1, 1, 1, 1]
    assert sizes_of(8, limits, 1 / 0.0106, workers=2) == [2, 2, 2, 1, 1]


def test_batches_are_full_if_enough_inputs_wait() -> None:
    assert sizes_of(8, BatchLimits(8, run_overhead_s=0.001), 0) == [8]
    assert sizes_of(8, BatchLimits(4, run_overhead_s=0.001), 0, workers=2) == [4, 1, 1, 1, 1]


def test_no_input_is_left_for_a_next_batch_that_would_miss_its_deadline() -> None:
    limits = BatchLimits(10, run_overhead_s=0.1)
    # One batch is done within 8.5 s, two batches within 9.2 s.
    assert sizes_of(8, limits, 0, image_s=1, within_s=8.85) == [8]
    assert sizes_of(8, limits, 0, image_s=1, within_s=60) == [2, 2, 2, 1, 1]


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
def test_inputs_are_freed_without_garbage_collection() -> None:
    references: list[weakref.ref[BatchInput]] = []

    class PrepareError(Exception):
        pass

    async def test(batcher: Batcher) -> None:
        def prepare(*, succeeds: bool) -> list[BatchInput]:
            prepared = image(1)
            references.append(weakref.ref(prepared))
            if not succeeds:
                raise PrepareError
            return [prepared]

        with closing(ImagePool(1)) as pool:
            for _ in range(5):
                await run_prepared(
                    batcher, pool, lambda: prepare(succeeds=True), SchedulingOptions()
                )
                with pytest.raises(PrepareError):
                    await run_prepared(
                        batcher, pool, lambda: prepare(succeeds=False), SchedulingOptions()
                    )
        await submit(batcher, 2)

    run(ColourEngine(), test)
    assert [reference() for reference in references] == [None] * 10


@pytest.mark.usefixtures("without_collector")
def test_expired_inputs_are_freed_while_the_worker_is_idle() -> None:
    engine = GatedEngine()
    references: list[weakref.ref[BatchInput]] = []

    async def test(batcher: Batcher) -> None:
        running = asyncio.create_task(submit(batcher, 1))
        await wait_for_run(engine)

        def prepare() -> list[BatchInput]:
            prepared = image(2)
            references.append(weakref.ref(prepared))
            return [prepared]

        with closing(ImagePool(1)) as pool:
            late = SchedulingOptions(time.perf_counter() + 0.05)
            expired = asyncio.create_task(run_prepared(batcher, pool, prepare, late))
            await asyncio.sleep(0.1)
            engine.gate.set()
            await running
            with pytest.raises(DeadlineExceededError):
                await expired
        del expired
        await asyncio.sleep(0.05)  # the worker is idle, and no request follows
        assert [reference() for reference in references] == [None]

    run(engine, test)


def test_no_input_is_prepared_after_the_deadline() -> None:
    gate = threading.Event()
    prepared: list[BatchInput] = []

    def prepare() -> list[BatchInput]:
        prepared.append(image(2))
        return prepared

    async def test(batcher: Batcher) -> None:
        with closing(ImagePool(1)) as pool:
            cost = DecodingCost(0, 1.0)
            pool.submit(lambda: gate.wait(10), SchedulingOptions(), cost)
            late = SchedulingOptions(time.perf_counter() + 0.05)
            expired = asyncio.create_task(run_prepared(batcher, pool, prepare, late, cost))
            await asyncio.sleep(0.1)
            gate.set()
            with pytest.raises(DeadlineExceededError, match="before its image was decoded"):
                await expired

    run(ColourEngine(), test)
    assert not prepared


def test_no_input_of_an_expired_request_is_run() -> None:
    engine = RecordingEngine()

    async def test(batcher: Batcher) -> None:
        running = asyncio.create_task(submit(batcher, 1))
        await wait_for_run(engine)
        # The first input cannot meet the deadline, the second one could.
        inputs = [
            BatchInput(image(2, 16).pixels, work=40),
            BatchInput(image(3, 12).pixels, work=0.1),
        ]
        deadline = SchedulingOptions(time.perf_counter() + 1.0)
        expired = asyncio.create_task(batcher.submit(inputs, deadline))
        await asyncio.sleep(0.05)
        engine.gate.set()
        await running
        with pytest.raises(DeadlineExceededError):
            await expired
        await submit(batcher, 4)

    observer = run(engine, test, latency_model=fixed_latency(0.05))
    assert [side_px for _, side_px, _ in engine.kinds] == [8, 8], "the first and the last request"
    assert observer.cancelled_stages == ["queue", "queue"]
