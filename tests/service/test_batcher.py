"""The batcher alone: what happens to each request when something goes wrong around it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import ColourEngine, GatedEngine

from service.batcher import Batcher, BatchInput, BatchRow
from service.engines import Engine
from service.errors import EngineError, StoppingError


def image(value: int, side_px: int = 8, flip: bool = False) -> BatchInput:
    return BatchInput(np.full((side_px, side_px, 3), value, np.uint8), flip)


def run(
    engine: Engine, test: Callable[[Batcher], Awaitable[None]], max_batch_size: int = 4
) -> None:
    """Run ``test`` over a started batcher, which is stopped within bounded time."""

    async def main() -> None:
        batcher = Batcher(engine, max_batch_size, lambda *_: None)
        batcher.start()
        async with asyncio.timeout(20):
            try:
                await test(batcher)
            finally:
                await batcher.stop()

    asyncio.run(main())


async def submit(batcher: Batcher, value: int) -> BatchRow:
    (row,) = await batcher.submit([image(value)])
    return row


def center_of(row: BatchRow) -> float:
    return float(row.outputs["centers"][0, 0])


async def entered(engine: GatedEngine) -> None:
    assert await asyncio.to_thread(engine.entered.acquire, timeout=10)


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

    def run(self, images: NDArray[np.uint8], flip: bool = False) -> Mapping[str, NDArray[Any]]:
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

    def run(self, images: NDArray[np.uint8], flip: bool = False) -> Mapping[str, NDArray[Any]]:
        self.kinds.append((len(images), images.shape[1], flip))
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

    run(engine, test, max_batch_size=2)
    assert engine.kinds[1] == (1, 16, False)


def test_large_inputs_make_small_batches() -> None:
    engine = RecordingEngine()

    async def main() -> None:
        batcher = Batcher(engine, 8, lambda *_: None, max_batch_pixels=2 * 16 * 16)
        batcher.start()
        engine.gate.set()
        sides = (16, 16, 16, 32, 8, 8)
        await batcher.submit([image(side, side) for side in sides])
        await batcher.stop()

    asyncio.run(main())
    assert sorted(engine.kinds) == [(1, 16, False), (1, 32, False), (2, 8, False), (2, 16, False)]


def test_the_inputs_of_one_request_share_their_fate() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        several = asyncio.create_task(batcher.submit([image(value) for value in range(4)]))
        await entered(engine)
        several.cancel()
        await asyncio.sleep(0)
        assert batcher.depth == 3, "the first is running"
        last = asyncio.create_task(submit(batcher, 9))
        await asyncio.sleep(0)
        engine.gate.set()
        assert center_of(await last) == 9
        rows = await batcher.submit([image(value) for value in range(3)])
        assert [center_of(row) for row in rows] == [0, 1, 2]

    run(engine, test, max_batch_size=1)
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

    run(engine, test, max_batch_size=1)
    assert caplog.text.count("the engine failed on a batch of 1") <= 2
    assert engine.batch_sizes[-1] == 1
