"""Cancel scopes end a block when a signal is set or a timeout is over."""

import asyncio
import threading

import pytest

from service.cancellation import CancelScope, CancelSignal, Timeout


class SignalError(Exception):
    """The error of a signal."""


class TimedOutError(Exception):
    """The error of a timeout."""


class WorkError(Exception):
    """An error of the work inside a scope."""


async def wait_forever() -> None:
    await asyncio.Event().wait()


async def wait_in_scope(signal: CancelSignal) -> None:
    with CancelScope(signal):
        await wait_forever()


def run(work) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await work()

    asyncio.run(bounded())


def test_work_that_ends_in_time_is_not_cancelled() -> None:
    async def work() -> None:
        signal = CancelSignal(SignalError)
        with CancelScope(signal), CancelScope(Timeout(0.01, TimedOutError)):
            await asyncio.sleep(0)
        signal.set()
        await asyncio.sleep(0.05)

    run(work)


def test_a_signal_cancels_open_and_later_scopes() -> None:
    async def work() -> None:
        signal = CancelSignal(SignalError)
        waiting = [asyncio.create_task(wait_in_scope(signal)) for _ in range(2)]
        await asyncio.sleep(0)
        signal.set()
        assert signal.is_set
        for task in (*waiting, wait_in_scope(signal)):
            with pytest.raises(SignalError):
                await task

    run(work)


def test_another_thread_may_set_the_signal() -> None:
    async def work() -> None:
        signal = CancelSignal(SignalError)
        asyncio.get_running_loop().call_later(0.01, threading.Thread(target=signal.set).start)
        with pytest.raises(SignalError), CancelScope(signal):
            await wait_forever()

    run(work)


def test_a_timeout_raises_its_error() -> None:
    async def work() -> None:
        for seconds in (0.01, -1.0):
            with pytest.raises(TimedOutError), CancelScope(Timeout(seconds, TimedOutError)):
                await wait_forever()
        assert asyncio.current_task().cancelling() == 0

    run(work)


def test_the_outer_scope_wins_when_both_signals_are_set() -> None:
    async def work() -> None:
        outer, inner = CancelSignal(SignalError), CancelSignal(TimedOutError)
        inner.set()
        outer.set()
        with pytest.raises(SignalError), CancelScope(outer), CancelScope(inner):
            await wait_forever()
        assert asyncio.current_task().cancelling() == 0

    run(work)


def test_the_error_of_an_inner_scope_passes_the_outer_one() -> None:
    async def work() -> None:
        with (
            pytest.raises(TimedOutError),
            CancelScope(CancelSignal(SignalError)),
            CancelScope(Timeout(0.01, TimedOutError)),
        ):
            await wait_forever()

    run(work)


def test_a_cancellation_from_elsewhere_propagates() -> None:
    async def work() -> None:
        signal = CancelSignal(SignalError)
        for also_set in (False, True):
            task = asyncio.create_task(wait_in_scope(signal))
            await asyncio.sleep(0)
            task.cancel()
            if also_set:
                signal.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(work)


def test_an_error_of_the_work_propagates() -> None:
    async def work() -> None:
        signal = CancelSignal(SignalError)

        async def fails_when_cancelled() -> None:
            try:
                await wait_forever()
            finally:
                raise WorkError

        signal.set()
        with pytest.raises(WorkError), CancelScope(signal):
            await fails_when_cancelled()
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)

    run(work)
