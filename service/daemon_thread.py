"""Blocking calls in a thread that does not keep the process alive."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class DaemonThread:
    """A thread that makes the calls of :meth:`call` and :meth:`submit` one at a time, in order.

    Unlike the threads of an executor, it does not delay the end of the process: SIGTERM does not
    wait for a call. It starts with the first call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, function: Callable[[], _Result]) -> _Result:
        """Return the result of ``function``, or raise its exception.

        If the caller is cancelled, a call that has not begun is not made, and the result of one
        that has begun is dropped.
        """
        return await asyncio.wrap_future(self.submit(function))

    def submit(self, function: Callable[[], _Result]) -> Future[_Result]:
        """Call ``function`` without waiting; after :meth:`close` it is not called."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[_Result] = Future()
        self._calls.put((future, function))
        return future

    def close(self) -> None:
        """End the thread after the current call."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            _make(*call)
            del call  # and with it the result


def _make(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # of any type: the caller must receive it
        future.set_exception(error)
