"""The batcher alone: what happens to each request when something goes wrong around it."""

import asyncio
import gc
import math
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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


class CountedEvents:
    """Remembers what became of inputs."""

    def __init__(self) -> None:
        self.triggers: list[str] = []
        self.given_up: list[str] = []

    def batch_done(self, run: BatchRun) -> None:
        self.triggers.append(run.trigger)

    def cancelled(self, stage: str) -> None:
        self.given_up.append(stage)


def image(value: int, side_px: int = 8, flip: bool = False) -> BatchInput:
    return BatchInput(np.full((side_px, side_px, 3), value, np.uint8), flip)


def run(
    engine: Engine,
    test: Callable[[Batcher], Awaitable[None]],
    limits: BatchLimits | None = None,
    estimate: LatencyModel | None = None,
) -> CountedEvents:
    """Run ``test`` over a started batcher, which is stopped within bounded time."""
    events = CountedEvents()

    async def main() -> None:
        batcher = Batcher(engine, limits or BatchLimits(4), estimate or LatencyModel(), events)
        batcher.start()
        async with asyncio.timeout(20):
            try:
                await test(batcher)
            finally:
                await batcher.stop()

    asyncio.run(main())
    return events


async def submit(batcher: Batcher, value: int) -> BatchItemOutput:
    (row,) = await batcher.submit([image(value)])
    return row


def center_of(row: BatchItemOutput) -> float:
    return float(row.outputs["centers"][0, 0])


async def entered(engine: GatedEngine) -> None:
    assert await asyncio.to_thread(engine.entered.acquire, timeout=10)


def convinced(seconds_each: float) -> LatencyModel:
    """What it believes of an image does not change by what is observed."""
    estimate = LatencyModel([(1, seconds_each), (8, 8 * seconds_each)])
    estimate.observe = lambda *_: None  # type: ignore[method-assign]
    return estimate


def test_requests_during_a_run_share_the_next_ones_in_order_of_arrival() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await entered(engine)
        rest = [asyncio.create_task(submit(batcher, value)) for value in range(1, 8)]
        await asyncio.sleep(0)
        assert batcher.depth == 7
        engine.gate.set()
        rows = await asyncio.gather(first, *rest)
        assert [center_of(row) for row in rows] == list(range(8))
        assert [row.batch_size for row in rows] == [1, 4, 4, 4, 4, 3, 3, 3]
        assert all(row.queue_s >= 0 for row in rows)

    run(engine, test)
    assert engine.batch_sizes == [1, 4, 3]


def test_a_request_that_gives_up_leaves_the_queue() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await entered(engine)
        gone = asyncio.create_task(submit(batcher, 1))
        stays = asyncio.create_task(submit(batcher, 2))
        await asyncio.sleep(0)
        gone.cancel()
        engine.gate.set()
        assert center_of(await stays) == 2
        await first

    run(engine, test)
    assert engine.batch_sizes == [1, 1]


def test_a_request_that_gives_up_during_its_run_harms_nobody() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        gone = asyncio.create_task(submit(batcher, 1))
        await entered(engine)
        gone.cancel()
        engine.gate.set()
        assert center_of(await submit(batcher, 2)) == 2

    run(engine, test)


class FaultyEngine(ColourEngine):
    """Fails on the calls whose numbers it is given, in the way it is given."""

    def __init__(self, fault: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]):
        super().__init__()
        self.fault = fault
        self.faulty = True

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        outputs = super().run(images, flip)
        return self.fault(outputs) if self.faulty else outputs


def raising(_: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    raise RuntimeError("no memory")


def one_row_short(outputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return {**outputs, "sizes": outputs["sizes"][1:]}


@pytest.mark.parametrize("fault", [raising, one_row_short])
def test_a_failed_run_fails_its_own_requests_only(
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


def test_stopping_finishes_what_is_queued_and_refuses_the_rest() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        queued = [asyncio.create_task(submit(batcher, value)) for value in range(6)]
        await entered(engine)
        stop = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(StoppingError):
            await submit(batcher, 7)
        engine.gate.set()
        assert [center_of(row) for row in await asyncio.gather(*queued)] == list(range(6))
        await stop

    run(engine, test)


class RecordingEngine(GatedEngine):
    """Remembers the kind of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[tuple[int, int, bool]] = []

    def run(self, images: Images, flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.kinds.append((len(images), images[0].shape[0], flip))
        return super().run(images, flip)


def test_only_inputs_of_one_kind_share_a_batch_and_the_oldest_goes_first() -> None:
    engine = RecordingEngine()
    arriving = [
        *(image(1, 8), image(2, 16), image(3, 8), image(4, 8, flip=True), image(5, 16)),
        *(image(6, 8), image(7, 8, flip=True)),
    ]

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await entered(engine)
        rest = [asyncio.create_task(batcher.submit([one])) for one in arriving]
        await asyncio.sleep(0)
        engine.gate.set()
        rows = await asyncio.gather(*rest)
        assert [center_of(row) for (row,) in rows] == [1, 2, 3, 4, 5, 6, 7]
        await first

    run(engine, test)
    # Four places and three of this shape and variant; then the next oldest, and its kind.
    assert engine.kinds[1:] == [(3, 8, False), (2, 16, False), (2, 8, True)]


def test_nobody_starves_behind_a_steady_stream_of_another_kind() -> None:
    engine = RecordingEngine()

    async def test(batcher: Batcher) -> None:
        stream = [asyncio.create_task(submit(batcher, value)) for value in range(2)]
        await entered(engine)
        rare = asyncio.create_task(batcher.submit([image(9, 16)]))
        stream += [asyncio.create_task(submit(batcher, value)) for value in range(20)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(rare, *stream)

    run(engine, test, BatchLimits(2))
    assert engine.kinds[1] == (1, 16, False)


def test_large_inputs_make_small_batches() -> None:
    engine = RecordingEngine()

    engine.gate.set()

    async def test(batcher: Batcher) -> None:
        sides = (16, 16, 16, 32, 8, 8)
        await batcher.submit([image(side, side) for side in sides])

    run(engine, test, BatchLimits(8, pixels=2 * 16 * 16))
    assert sorted(engine.kinds) == [(1, 16, False), (1, 32, False), (2, 8, False), (2, 16, False)]


def test_the_inputs_of_one_request_share_their_fate() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        several = asyncio.create_task(batcher.submit([image(value) for value in range(4)]))
        await entered(engine)
        assert batcher.depth == 3, "the first is running"
        several.cancel()
        await asyncio.sleep(0)
        assert batcher.depth == 0
        last = asyncio.create_task(submit(batcher, 9))
        await asyncio.sleep(0)
        engine.gate.set()
        assert center_of(await last) == 9
        rows = await batcher.submit([image(value) for value in range(3)])
        assert [center_of(row) for row in rows] == [0, 1, 2]

    run(engine, test, BatchLimits(1))
    assert engine.batch_sizes == [1] * 5


def test_a_failed_input_fails_its_request_and_takes_the_rest_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FaultyEngine(raising)

    async def test(batcher: Batcher) -> None:
        with pytest.raises(EngineError):
            await batcher.submit([image(value) for value in range(3)])
        engine.faulty = False
        assert center_of(await submit(batcher, 9)) == 9

    run(engine, test, BatchLimits(1))
    assert caplog.text.count("the engine failed on a batch of 1") <= 2
    assert engine.batch_sizes[-1] == 1


class TwoWorkerEngine(GatedEngine):
    """Takes two calls at a time."""

    concurrency = 2


def test_two_batches_are_in_flight_where_the_engine_takes_two() -> None:
    engine = TwoWorkerEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 1))
        await entered(engine)
        second = asyncio.create_task(submit(batcher, 2))
        await entered(engine)
        third = asyncio.create_task(submit(batcher, 3))
        await asyncio.sleep(0.05)
        assert batcher.depth == 1, "there is no third worker"
        engine.gate.set()
        rows = await asyncio.gather(first, second, third)
        assert [center_of(row) for row in rows] == [1, 2, 3]

    events = run(engine, test, BatchLimits(4))
    assert events.triggers == ["idle"] * 3


def test_a_full_batch_leaves_at_once_and_the_last_when_its_delay_is_over() -> None:
    async def test(batcher: Batcher) -> None:
        rows = await batcher.submit([image(value) for value in range(6)])
        assert [row.batch_size for row in rows] == [4, 4, 4, 4, 2, 2]
        assert rows[-1].queue_s >= 0.2

    events = run(ColourEngine(), test, BatchLimits(4, delay_s=0.2))
    assert events.triggers == ["full", "timeout"]


def test_nobody_waits_for_company_that_is_not_expected() -> None:
    async def test(batcher: Batcher) -> None:
        for value in range(3):
            await submit(batcher, value)
            await asyncio.sleep(0.05)

    # Three arrivals 50 ms apart promise nobody within the 20 ms that a batch may wait.
    events = run(ColourEngine(), test, BatchLimits(4, delay_s=0.02))
    assert events.triggers[1:] == ["idle", "idle"]


def test_a_batch_leaves_before_its_tightest_deadline_would_be_missed() -> None:
    async def test(batcher: Batcher) -> None:
        scheduling = SchedulingOptions(deadline_at=time.perf_counter() + 0.5)
        await asyncio.gather(
            batcher.submit([image(1)], scheduling), *(submit(batcher, value) for value in range(2))
        )

    slow_start = LatencyModel([(1, 0.1), (8, 0.1)])
    events = run(ColourEngine(), test, BatchLimits(8, delay_s=10), slow_start)
    assert events.triggers == ["deadline"]


def test_a_batch_is_kept_small_enough_for_its_tightest_deadline() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await entered(engine)
        in_a_hurry = SchedulingOptions(deadline_at=time.perf_counter() + 2.5)
        rest = [asyncio.create_task(batcher.submit([image(1)], in_a_hurry))]
        rest += [asyncio.create_task(batcher.submit([image(value)])) for value in range(2, 6)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *rest)

    # A second per image is believed: two can be done in time, not five.
    events = run(engine, test, BatchLimits(8), convinced(1.0))
    assert engine.batch_sizes == [1, 2, 3]
    assert events.triggers == ["idle", "deadline", "idle"]


@pytest.mark.parametrize(("allowed_s", "estimate"), [(0.01, LatencyModel()), (5, convinced(3600))])
def test_what_cannot_be_done_in_time_never_reaches_the_engine(
    allowed_s: float, estimate: LatencyModel
) -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(submit(batcher, 0))
        await entered(engine)
        late = SchedulingOptions(deadline_at=time.perf_counter() + allowed_s)
        hopeless = asyncio.create_task(batcher.submit([image(1)], late))
        await asyncio.sleep(0.02)
        engine.gate.set()
        await first
        with pytest.raises(DeadlineExceededError, match="left no time"):
            await hopeless

    events = run(engine, test, BatchLimits(4), estimate)
    assert engine.batch_sizes == [1]
    assert events.given_up == ["queue"]


def test_an_idle_engine_tries_what_is_believed_to_be_too_slow() -> None:
    async def test(batcher: Batcher) -> None:
        for value in range(3):
            scheduling = SchedulingOptions(deadline_at=time.perf_counter() + 10)
            (row,) = await batcher.submit([image(value)], scheduling)
            assert center_of(row) == value

    run(ColourEngine(), test, BatchLimits(4), LatencyModel([(1, 3600.0)]))


def test_engine_time_spent_on_nobody_is_counted() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        running = asyncio.create_task(submit(batcher, 0))
        await entered(engine)
        queued = asyncio.create_task(submit(batcher, 1))
        await asyncio.sleep(0)
        running.cancel()
        queued.cancel()
        await asyncio.sleep(0.01)
        assert batcher.depth == 0
        engine.gate.set()

    events = run(engine, test, BatchLimits(4))
    assert events.given_up == ["queue", "infer"]


def test_priorities_go_first_but_not_for_ever() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        order: list[str] = []

        async def ask(name: str, priority_offset_s: float) -> None:
            await batcher.submit([image(1)], SchedulingOptions(priority_offset_s=priority_offset_s))
            order.append(name)

        first = asyncio.create_task(ask("first", 0))
        await entered(engine)
        rest = []
        for name, priority_offset_s in (("old low", -0.1), ("normal", 0.0), ("high", 0.1)):
            rest.append(asyncio.create_task(ask(name, priority_offset_s)))
        await asyncio.sleep(0.3)
        rest.append(asyncio.create_task(ask("new high", 0.1)))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *rest)
        assert order == ["first", "high", "normal", "old low", "new high"]

    run(engine, test, BatchLimits(1))


def test_a_broken_engine_fails_everybody_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def breaking(_: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        raise EngineBrokenError("an illegal memory access was encountered")

    engine = FaultyEngine(breaking)

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
    assert engine.batch_sizes == [1], "a broken engine is not tried again"
    assert "the engine failed" in caplog.text


def test_a_run_that_does_not_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = GatedEngine()
    monkeypatch.setattr("service.batching.batcher.STUCK_AFTER_S", 0.05)

    async def test(batcher: Batcher) -> None:
        running = asyncio.create_task(submit(batcher, 0))
        await entered(engine)
        await asyncio.sleep(0.1)
        assert "has not ended" in str(batcher.problem)
        engine.gate.set()
        await running
        assert batcher.problem is None

    run(engine, test, BatchLimits(1))


def test_a_score_that_is_not_a_number_fails_its_own_image_only() -> None:
    def blind_to_the_first(outputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        outputs["scores"][0] = np.nan
        return outputs

    async def test(batcher: Batcher) -> None:
        several = [submit(batcher, value) for value in range(3)]
        results = await asyncio.gather(*several, return_exceptions=True)
        assert type(results[0]) is EngineError
        assert [center_of(row) for row in results[1:]] == [1, 2]  # type: ignore[arg-type]

    run(FaultyEngine(blind_to_the_first), test, BatchLimits(3, delay_s=1))


class FirmEstimate(LatencyModel):
    """A run costs half an image more than its images, whatever is observed."""

    def __init__(self, image_s: float) -> None:
        super().__init__([(1, 1.5 * image_s), (8, 8.5 * image_s)])

    def observe(self, n: float, seconds: float) -> None:
        """Learn nothing from a gate."""


def sizes_of(
    waiting: int,
    limits: BatchLimits,
    rate: float,
    workers: int = 1,
    image_s: float = 0.01,
    within_s: float = math.inf,
) -> list[int]:
    """In which batches so many run, after one in each worker, at so many arrivals per second."""
    engine = GatedEngine()
    engine.concurrency = workers

    async def test(batcher: Batcher) -> None:
        first = [asyncio.create_task(submit(batcher, value)) for value in range(workers)]
        for _ in first:
            await entered(engine)
        scheduling = SchedulingOptions(time.perf_counter() + within_s)
        several = [batcher.submit([image(value)], scheduling) for value in range(waiting)]
        rest = [asyncio.create_task(one) for one in several]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(*first, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "service.batching.latency_model.ArrivalRate.expected", lambda _, seconds: rate * seconds
        )
        run(engine, test, limits, FirmEstimate(image_s))
    sizes = sorted(engine.batch_sizes, reverse=True)
    assert sizes[-workers:] == [1] * workers
    return sizes[:-workers]


def test_batches_are_as_large_as_answers_soonest_asks_for() -> None:
    limits = BatchLimits(10, run_overhead_s=0.001)  # with the engine's own, a run costs 6 ms
    # sqrt(8 * 0.6) of 8, sqrt(6 * 0.6) of 6, and so on, to the nearest power of two.
    assert sizes_of(8, limits, 0) == [2, 2, 2, 1, 1]
    # Half of the time is asked for, 10.6 ms for each arrival: twice as many are behind them.
    assert sizes_of(8, limits, 0.5 / 0.0106) == [4, 2, 2]
    # Nine parts of ten at most.
    assert sizes_of(9, limits, 1000) == [8, 1]
    # Two workers share those who wait and who come.
    assert sizes_of(8, limits, 0, workers=2) == [2, 1, 1, 1, 1, 1, 1]
    assert sizes_of(8, limits, 1 / 0.0106, workers=2) == [2, 2, 2, 1, 1]


def test_where_batches_could_be_full_they_are() -> None:
    assert sizes_of(8, BatchLimits(8, run_overhead_s=0.001), 0) == [8]
    assert sizes_of(8, BatchLimits(4, run_overhead_s=0.001), 0, workers=2) == [4, 1, 1, 1, 1]


def test_nobody_is_left_for_a_next_batch_that_would_be_too_late() -> None:
    limits = BatchLimits(10, run_overhead_s=0.1)
    # Together they are done within 8.5 s, in two batches within 9.2 s.
    assert sizes_of(8, limits, 0, image_s=1, within_s=8.85) == [8]
    assert sizes_of(8, limits, 0, image_s=1, within_s=60) == [2, 2, 2, 1, 1]


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
def test_nothing_of_a_request_waits_for_the_garbage_collector() -> None:
    references: list[weakref.ref[BatchInput]] = []

    class DamageError(Exception):
        pass

    async def test(batcher: Batcher) -> None:
        def prepare(*, good: bool) -> list[BatchInput]:
            prepared = image(1)
            references.append(weakref.ref(prepared))
            if not good:
                raise DamageError
            return [prepared]

        with ThreadPoolExecutor(1) as pool:
            for _ in range(5):
                await run_prepared(batcher, pool, lambda: prepare(good=True), SchedulingOptions())
                with pytest.raises(DamageError):
                    await run_prepared(
                        batcher, pool, lambda: prepare(good=False), SchedulingOptions()
                    )
        await submit(batcher, 2)

    run(ColourEngine(), test)
    assert [reference() for reference in references] == [None] * 10
