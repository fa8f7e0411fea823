"""The batcher alone: what happens to each request when something goes wrong around it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving import ColourEngine, GatedEngine

from service.batcher import Batcher, BatchRow
from service.engines import Engine
from service.errors import EngineError, StoppingError


def image(value: int) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), value, np.uint8)


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


def center_of(row: BatchRow) -> float:
    return float(row.outputs["centers"][0, 0])


async def entered(engine: GatedEngine) -> None:
    assert await asyncio.to_thread(engine.entered.acquire, timeout=10)


def test_requests_during_a_run_share_the_next_ones_in_order_of_arrival() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(image(0)))
        await entered(engine)
        rest = [asyncio.create_task(batcher.submit(image(value))) for value in range(1, 8)]
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
        first = asyncio.create_task(batcher.submit(image(0)))
        await entered(engine)
        gone = asyncio.create_task(batcher.submit(image(1)))
        stays = asyncio.create_task(batcher.submit(image(2)))
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
        gone = asyncio.create_task(batcher.submit(image(1)))
        await entered(engine)
        gone.cancel()
        engine.gate.set()
        assert center_of(await batcher.submit(image(2))) == 2

    run(engine, test)


class FaultyEngine(ColourEngine):
    """Fails on the calls whose numbers it is given, in the way it is given."""

    def __init__(self, fault: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]):
        super().__init__()
        self.fault = fault
        self.faulty = True

    def run(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        outputs = super().run(images)
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
            *(batcher.submit(image(value)) for value in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [EngineError] * 3
        assert len({id(result) for result in results}) == 3
        engine.faulty = False
        assert center_of(await batcher.submit(image(9))) == 9

    run(engine, test)
    assert "the engine failed on a batch of" in caplog.text


def test_stopping_finishes_what_is_queued_and_refuses_the_rest() -> None:
    engine = GatedEngine()

    async def test(batcher: Batcher) -> None:
        queued = [asyncio.create_task(batcher.submit(image(value))) for value in range(6)]
        await entered(engine)
        stop = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(StoppingError):
            await batcher.submit(image(7))
        engine.gate.set()
        assert [center_of(row) for row in await asyncio.gather(*queued)] == list(range(6))
        await stop

    run(engine, test)
