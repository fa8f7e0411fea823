"""Blocking calls in one thread."""

import asyncio
import threading

import pytest

from service.daemon_thread import DaemonThread


def test_all_calls_are_made_in_one_daemon_thread() -> None:
    async def call_twice() -> list[threading.Thread]:
        return [await thread.call(threading.current_thread) for _ in range(2)]

    thread = DaemonThread("worker")
    first, second = asyncio.run(call_twice())
    assert first is second
    assert (first.name, first.daemon) == ("worker", True)
    thread.close()
    first.join(10)
    assert not first.is_alive()


def test_an_exception_is_raised_in_the_caller_and_does_not_end_the_thread() -> None:
    def fail() -> None:
        raise SystemExit("no package")

    async def fail_then_return() -> int:
        with pytest.raises(SystemExit, match="no package"):
            await thread.call(fail)
        return await thread.call(lambda: 1)

    thread = DaemonThread("worker")
    assert asyncio.run(fail_then_return()) == 1
    thread.close()


def test_a_cancelled_call_is_not_made_if_it_has_not_begun() -> None:
    may_end = threading.Event()
    made: list[str] = []

    async def cancel_two() -> list[str]:
        running = asyncio.create_task(thread.call(may_end.wait))
        waiting = asyncio.create_task(thread.call(lambda: made.append("cancelled")))
        await asyncio.sleep(0)
        waiting.cancel()
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        may_end.set()
        return await thread.call(lambda: made)

    thread = DaemonThread("worker")
    assert asyncio.run(cancel_two()) == []
    thread.close()
