"""Admission control: a bounded number of network inputs, and only those that can be in time."""

import math
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from service.batching.latency_model import LatencyModel
from service.errors import DeadlineUnreachableError, QueueFullError, TooManyInputsError

MAX_RETRY_AFTER_S = 60

_RESERVED_SHARE = 4
"""Places, one in so many, that only requests of one network input may occupy. Large requests, which
take a few kilobytes, would otherwise cause the rejection of every other one."""

_LATENESS_WINDOW = 100
_OUTLIERS = 2
"""Latencies above the target that are accepted among the latest ``_LATENESS_WINDOW``; the latency
model estimates their mean."""


class Admission:
    """Admission control of one model.

    An admitted request occupies one place per network input, from the arrival of its whole body
    until its response is ready. ``limit``: number of places. ``target_s``: maximum expected
    latency; None: only the number of places counts. A quarter of the places is kept for requests of
    one input. ``latency``: end-to-end latency as a function
    of the occupied places, decoding included, updated by each request.
    """

    def __init__(
        self, model: str, limit: int, target_s: float | None, latency: LatencyModel
    ) -> None:
        self.limit = limit
        self.admitted = 0
        """Occupied places."""
        self._model = model
        self._target_s = math.inf if target_s is None else target_s
        self._latency = latency
        self._lateness: deque[float] = deque(maxlen=_LATENESS_WINDOW)
        self._tail_factor = 1.0

    def check(self, places: int, deadline_at: float) -> None:
        """Raise if a request for ``places`` would be rejected now.

        Raises :class:`TooManyInputsError`, :class:`QueueFullError` and
        :class:`DeadlineUnreachableError`. The latter two are never raised while no other request is
        admitted: the latency model could not be corrected otherwise.
        """
        limit = self.limit if places == 1 else self.limit - self.limit // _RESERVED_SHARE
        if places > limit:
            raise TooManyInputsError(
                f"The request needs {places} network inputs (images x scales); the queue of model "
                f"{self._model} holds {limit} of such requests. Send fewer images or scales per "
                "request."
            )
        if not self.admitted:
            return
        expected_s = self._latency.seconds(self.admitted + places)
        excess = self.admitted + places - limit
        if excess > 0:
            raise QueueFullError(
                f"Model {self._model} has {self.admitted} inputs queued of at most {limit}, "
                f"and this request needs {places}. Send it again after the time in Retry-After.",
                retry_after_s=_retry_after_s(excess * self._latency.line.slope_s),
            )
        tail_s = expected_s * self._tail_factor
        if tail_s > self._target_s:
            raise QueueFullError(
                f"Model {self._model} has {self.admitted} inputs queued: the response could take "
                f"{1000 * tail_s:.0f} ms, and the target latency of this service is "
                f"{1000 * self._target_s:.0f} ms. Send the request again after the time in "
                "Retry-After.",
                retry_after_s=_retry_after_s(tail_s - self._target_s),
            )
        left_s = deadline_at - time.perf_counter()
        if expected_s > left_s:
            raise DeadlineUnreachableError(
                f"The response would take about {1000 * expected_s:.0f} ms, and the request allows "
                f"{1000 * max(left_s, 0):.0f} ms more. Send it again after the time in "
                "Retry-After, or allow more time.",
                retry_after_s=_retry_after_s(expected_s - left_s),
            )

    @contextmanager
    def admit(self, places: int, deadline_at: float) -> Iterator[None]:
        """Occupy the places until the block ends; raises what :meth:`check` raises."""
        self.check(places, deadline_at)
        self.admitted += places
        occupied, began_at = self.admitted, time.perf_counter()
        expected_s = self._latency.seconds(occupied)
        try:
            yield
            latency_s = time.perf_counter() - began_at
            self._latency.observe(occupied, latency_s)
            if expected_s and self._target_s < math.inf:
                self._observe_lateness(latency_s / expected_s)
        finally:
            self.admitted -= places

    def _observe_lateness(self, ratio: float) -> None:
        self._lateness.append(ratio)
        ranked = sorted(self._lateness, reverse=True)
        self._tail_factor = max(1.0, ranked[_OUTLIERS] if len(ranked) > _OUTLIERS else 1.0)


def _retry_after_s(wait_s: float) -> int:
    """Return whole seconds, randomised so that rejected clients do not all return at once."""
    spread_s = wait_s * random.uniform(1, 2)
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(spread_s)))
