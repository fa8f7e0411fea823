"""Blocks that end when something happens first."""

import asyncio
import threading

import pytest

from service.cancellation import CancelScope, CancelSignal, Timeout


class LostError(Exception):
    """What an interruption of the tests raises."""


class LateError(Exception):
    """What a timeout of the tests raises."""


class OwnError(Exception):
    """What the work itself raises."""


async def for_ever() -> None:
    await asyncio.Event().wait()


async def wait_unless(lost: CancelSignal) -> None:
    with CancelScope(lost):
        await for_ever()


def run(work) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await work()

    asyncio.run(bounded())


def test_work_that_ends_in_time_is_left_alone() -> None:
    async def work() -> None:
        lost = CancelSignal(LostError)
        with CancelScope(lost), CancelScope(Timeout(0.01, LateError)):
            await asyncio.sleep(0)
        lost.set()
        await asyncio.sleep(0.05)

    run(work)


def test_what_happens_ends_every_open_block_and_later_ones() -> None:
    async def work() -> None:
        lost = CancelSignal(LostError)
        waiting = [asyncio.create_task(wait_unless(lost)) for _ in range(2)]
        await asyncio.sleep(0)
        lost.set()
        assert lost.is_set
        for one in (*waiting, wait_unless(lost)):
            with pytest.raises(LostError):
                await one

    run(work)


def test_another_thread_may_let_it_happen() -> None:
    async def work() -> None:
        lost = CancelSignal(LostError)
        asyncio.get_running_loop().call_later(0.01, threading.Thread(target=lost.set).start)
        with pytest.raises(LostError), CancelScope(lost):
            await for_ever()

    run(work)


def test_time_runs_out() -> None:
    async def work() -> None:
        for seconds in (0.01, -1.0):
            with pytest.raises(LateError), CancelScope(Timeout(seconds, LateError)):
                await for_ever()
        assert asyncio.current_task().cancelling() == 0

    run(work)


def test_the_outer_block_wins_when_both_are_interrupted() -> None:
    async def work() -> None:
        outer, inner = CancelSignal(LostError), CancelSignal(LateError)
        inner.set()
        outer.set()
        with pytest.raises(LostError), CancelScope(outer), CancelScope(inner):
            await for_ever()
        assert asyncio.current_task().cancelling() == 0

    run(work)


def test_the_error_of_an_inner_block_passes_the_outer_one() -> None:
    async def work() -> None:
        with (
            pytest.raises(LateError),
            CancelScope(CancelSignal(LostError)),
            CancelScope(Timeout(0.01, LateError)),
        ):
            await for_ever()

    run(work)


def test_somebody_else_s_cancellation_stays_theirs() -> None:
    async def work() -> None:
        lost = CancelSignal(LostError)
        for also_lost in (False, True):
            task = asyncio.create_task(wait_unless(lost))
            await asyncio.sleep(0)
            task.cancel()
            if also_lost:
                lost.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(work)


def test_an_error_of_the_work_is_not_hidden() -> None:
    async def work() -> None:
        lost = CancelSignal(LostError)

        async def fails_when_cancelled() -> None:
            try:
                await for_ever()
            finally:
                raise OwnError

        lost.set()
        with pytest.raises(OwnError), CancelScope(lost):
            await fails_when_cancelled()
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)

    run(work)
