"""Work that is given up when something else happens first.

No task is started to watch for it: what happens finds the blocks that wait for it, and cancels the
tasks that are inside.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self


class CancelSignal:
    """Something that happens once, and ends every :class:`CancelScope` that is open then or later.

    ``error`` makes what is raised there.
    """

    def __init__(self, error: Callable[[], Exception]) -> None:
        self.is_set = False
        self.error = error
        self._blocks: set[CancelScope] = set()

    def set(self) -> None:
        """Let it happen; any thread may, and signal handlers."""
        self.is_set = True
        for block in list(self._blocks):
            block.cancel_soon()

    def watch(self, block: "CancelScope") -> None:
        """Interrupt ``block`` when it happens, or soon if it has."""
        self._blocks.add(block)
        if self.is_set:
            # After another look at what has arrived: work that needs no more than that is done.
            asyncio.get_running_loop().call_soon(block.cancel_soon)

    def forget(self, block: "CancelScope") -> None:
        """The block has ended."""
        self._blocks.discard(block)


class CancelScope:
    """A block that raises the error of ``interruption`` as soon as that happens.

    ``with CancelScope(lost): await work``. It cancels what the task waits for, as
    :func:`asyncio.timeout` does; blocks may be inside each other.
    """

    def __init__(self, interruption: "CancelSignal | Timeout") -> None:
        self._interruption = interruption
        self._task: asyncio.Task[object] | None = None
        self._is_interrupted = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._interruption.watch(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._interruption.forget(self)
        task, self._task = self._task, None
        # Others may have cancelled the task as well: then it is theirs.
        is_ours = self._is_interrupted and task is not None and task.uncancel() == 0
        if is_ours and kind is asyncio.CancelledError:
            raise self._interruption.error() from None

    def cancel_soon(self) -> None:
        """Have the event loop end the block: a task that is running cannot be cancelled well."""
        task = self._task  # which another thread may take away meanwhile
        if task is not None:
            task.get_loop().call_soon_threadsafe(self.cancel_task)

    def cancel_task(self) -> None:
        """End the block, if it has not ended; called by the event loop."""
        if self._task is not None and not self._is_interrupted:
            self._is_interrupted = True
            self._task.cancel()


class Timeout:
    """Happens ``seconds`` after the one block that it is for began."""

    def __init__(self, seconds: float, error: Callable[[], Exception]) -> None:
        self.error = error
        self._seconds = seconds

    def watch(self, block: CancelScope) -> None:
        """Interrupt ``block`` when its time is over."""
        self._timer = asyncio.get_running_loop().call_later(self._seconds, block.cancel_task)

    def forget(self, block: CancelScope) -> None:
        """The block has ended."""
        del block
        self._timer.cancel()
