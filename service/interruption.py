"""Work that is given up when something else happens first."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

_Result = TypeVar("_Result")


async def unless(
    interruption: Coroutine[Any, Any, NoReturn], work: Coroutine[Any, Any, _Result]
) -> _Result:
    """Return what ``work`` returns, unless ``interruption`` raises before; then cancel it.

    Whatever happens, neither of the two runs on after this call.
    """
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(interruption)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = tasks[0] if tasks[0].done() else tasks[1]
        return await first
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
