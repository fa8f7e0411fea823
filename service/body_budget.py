"""Limit on the memory of request bodies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import QueueFullError


class BodyBudget:
    """Limit on the memory of all request bodies together; a connection without bytes uses none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of request bodies in memory."""
        return self._held_bytes

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes until the block ends.

        It raises :class:`QueueFullError` if the budget is exhausted.
        """
        claimed = 0

        def claim(size: int) -> None:
            nonlocal claimed
            if self._held_bytes + size > self._max_bytes:
                raise QueueFullError(
                    f"The bodies of other requests use the {self._max_bytes} bytes that are "
                    "held at a time. Send the request again after the time in Retry-After.",
                    retry_after_s=1,
                )
            self._held_bytes += size
            claimed += size

        try:
            yield claim
        finally:
            self._held_bytes -= claimed
