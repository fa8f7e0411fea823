"""Concurrent processing in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of the items; at most ``limit`` are held at a time.

    Items are taken as results are consumed. If the iteration ends early, calls that have not begun
    are cancelled.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(pending) == limit:
                yield pending.popleft().result()
            pending.append(executor.submit(function, item))
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
