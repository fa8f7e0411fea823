"""Who may enter: a bounded number of network inputs, and only what can be answered in time."""

import math
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from service.batching.latency_model import LatencyModel
from service.errors import DeadlineUnreachableError, QueueFullError

MAX_RETRY_AFTER_S = 60

_ANSWERS = 100
_EXCEPTIONS = 2
"""The target is kept by all but so many of the latest answers; the estimate is of the mean."""


class Admission:
    """The places of one model, taken from the whole body's arrival to the answer.

    ``estimate`` says how long an answer takes when n inputs are inside, and learns from each; what
    it says includes decoding, the engine and everything between. ``target_s`` refuses whom it
    would take longer; None: only the number of places does.
    """

    def __init__(
        self, model: str, limit: int, target_s: float | None, estimate: LatencyModel
    ) -> None:
        self.limit = limit
        self.admitted = 0
        self._model = model
        self._target_s = math.inf if target_s is None else target_s
        self._estimate = estimate
        self._lateness: deque[float] = deque(maxlen=_ANSWERS)
        self._default_worst = 1.0

    def check(self, places: int, deadline_at: float) -> None:
        """Refuse who could not be served now, before the body is read.

        Raises :class:`QueueFullError` and :class:`DeadlineUnreachableError`. A request alone is
        never refused: what is believed of its duration may be wrong, and would never be righted.
        """
        if not self.admitted:
            return
        expected_s = self._estimate.seconds(self.admitted + places)
        excess = self.admitted + places - self.limit
        if excess > 0:
            raise QueueFullError(
                f"Model {self._model} has {self.admitted} inputs waiting and admits {self.limit}; "
                f"this request needs {places}. Send it again after the time in Retry-After.",
                retry_after_s=_retry_after_s(excess * self._estimate.line.slope_s),
            )
        worst_s = expected_s * self._default_worst
        if worst_s > self._target_s:
            raise QueueFullError(
                f"Model {self._model} has {self.admitted} inputs waiting: the answer could take "
                f"{1000 * worst_s:.0f} ms, which is more than the "
                f"{1000 * self._target_s:.0f} ms that this service keeps to. Send the request "
                "again after the time in Retry-After.",
                retry_after_s=_retry_after_s(worst_s - self._target_s),
            )
        left_s = deadline_at - time.perf_counter()
        if expected_s > left_s:
            raise DeadlineUnreachableError(
                f"The answer would take about {1000 * expected_s:.0f} ms and the request allows "
                f"{1000 * max(left_s, 0):.0f} ms more. Send it again after the time in "
                "Retry-After, or allow more time.",
                retry_after_s=_retry_after_s(expected_s - left_s),
            )

    @contextmanager
    def hold(self, places: int, deadline_at: float) -> Iterator[None]:
        """Take the places for as long as the request is inside; raises what :meth:`check` does."""
        self.check(places, deadline_at)
        self.admitted += places
        inside, began_at = self.admitted, time.perf_counter()
        expected_s = self._estimate.seconds(inside)
        try:
            yield
            taken_s = time.perf_counter() - began_at
            self._estimate.observe(inside, taken_s)
            if expected_s and self._target_s < math.inf:
                self._note_lateness(taken_s / expected_s)
        finally:
            self.admitted -= places

    def _note_lateness(self, ratio: float) -> None:
        self._lateness.append(ratio)
        ranked = sorted(self._lateness, reverse=True)
        self._default_worst = max(1.0, ranked[_EXCEPTIONS] if len(ranked) > _EXCEPTIONS else 1.0)


def _retry_after_s(wait_s: float) -> int:
    """Whole seconds, spread out so that those who were refused together do not return together."""
    spread_s = wait_s * random.uniform(1, 2)
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(spread_s)))
