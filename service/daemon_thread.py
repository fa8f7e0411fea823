"""Blocking calls in threads that do not keep the process alive."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


async def call_in_daemon_thread(name: str, function: Callable[[], _Result]) -> _Result:
    """Call ``function`` in a new thread and return its result, or raise its exception.

    Unlike the threads of an executor, the thread does not delay the end of the process: SIGTERM
    does not wait for it. If the caller is cancelled, the result is dropped.
    """
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # of any type: the caller must receive it
            future.set_exception(error)

    threading.Thread(target=call, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)
