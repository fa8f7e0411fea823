"""Work that is given up when something else happens first."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

_Result = TypeVar("_Result")


async def unless(
    interruption: Coroutine[Any, Any, NoReturn], work: Coroutine[Any, Any, _Result]
) -> _Result:
    """Return what ``work`` returns, unless ``interruption`` raises before; then cancel it.

    ``work`` runs in the task of the caller, which is what makes this cheap. Whatever happens,
    neither of the two goes on after this call.
    """
    caller = asyncio.current_task()
    assert caller is not None
    watcher = asyncio.create_task(interruption)
    at_work, interrupted = True, False

    def interrupt(ended: "asyncio.Task[NoReturn]") -> None:
        nonlocal interrupted
        if not ended.cancelled() and ended.exception() is not None and at_work:
            interrupted = True
            caller.cancel()

    watcher.add_done_callback(interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        if interrupted and caller.uncancel() == 0:
            await watcher  # which raises
        raise
    finally:
        at_work = False
        watcher.cancel()
