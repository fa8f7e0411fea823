"""Cancel scopes: blocks that end with an error when a signal is set or a timeout is over.

A signal holds the scopes that watch it and cancels their tasks. There is no watcher task, which
would cost every request two turns of the event loop.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self


class CancelSignal:
    """A one-time signal that ends every :class:`CancelScope` on it, open ones and later ones.

    ``error`` returns the exception that the scopes raise.
    """

    def __init__(self, error: Callable[[], Exception]) -> None:
        self.is_set = False
        self.error = error
        self._scopes: set[CancelScope] = set()

    def set(self) -> None:
        """Set the signal; may be called by any thread and by signal handlers."""
        self.is_set = True
        for scope in list(self._scopes):
            scope.cancel_soon()

    def watch(self, scope: "CancelScope") -> None:
        """Cancel ``scope`` when the signal is set, or soon if it is set already."""
        self._scopes.add(scope)
        if self.is_set:
            # One turn of the loop later: a block whose data is already available completes.
            asyncio.get_running_loop().call_soon(scope.cancel_soon)

    def unwatch(self, scope: "CancelScope") -> None:
        """Stop watching for ``scope``, which has ended."""
        self._scopes.discard(scope)


class CancelScope:
    """A block that raises the error of ``source`` as soon as ``source`` is set.

    ``with CancelScope(signal): await work``. Like :func:`asyncio.timeout`, it cancels what the task
    awaits; scopes may be nested.
    """

    def __init__(self, source: "CancelSignal | Timeout") -> None:
        self._source = source
        self._task: asyncio.Task[object] | None = None
        self._is_cancelled = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._source.watch(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._source.unwatch(self)
        task, self._task = self._task, None
        # If the task was also cancelled from elsewhere, that cancellation must propagate.
        is_own = self._is_cancelled and task is not None and task.uncancel() == 0
        if is_own and kind is asyncio.CancelledError:
            raise self._source.error() from None

    def cancel_soon(self) -> None:
        """Let the event loop call :meth:`cancel`; thread-safe."""
        task = self._task  # another thread may reset it meanwhile
        if task is not None:
            task.get_loop().call_soon_threadsafe(self.cancel)

    def cancel(self) -> None:
        """Cancel the task inside the block, if any; called by the event loop."""
        if self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()


class Timeout:
    """A source for one :class:`CancelScope` that is set after ``seconds``."""

    def __init__(self, seconds: float, error: Callable[[], Exception]) -> None:
        self.error = error
        self._seconds = seconds

    def watch(self, scope: CancelScope) -> None:
        """Start the timer."""
        self._timer = asyncio.get_running_loop().call_later(self._seconds, scope.cancel)

    def unwatch(self, scope: CancelScope) -> None:
        """Stop the timer."""
        del scope
        self._timer.cancel()
