"""When a request is sent again, and for how long."""

import random
import time
from dataclasses import dataclass

from client.errors import ClientError

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 10.0
"""Seconds of the first back-off, which doubles with each failure, and of the longest."""


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of one call.

    Attributes:
        timeout_s: seconds for one attempt, sent to the service as its deadline.
        deadline_s: seconds for all attempts and the time between them.
        retries: how often a request is sent again after temporary failures in a row. Responses
            with ``Retry-After`` do not count: only the deadline limits them.
    """

    timeout_s: float = 60.0
    deadline_s: float = 120.0
    retries: int = 5

    def __post_init__(self) -> None:
        """Check the ranges; raises :class:`ValueError`."""
        if min(self.timeout_s, self.deadline_s) <= 0 or self.retries < 0:
            raise ValueError(
                f"received timeout_s={self.timeout_s}, deadline_s={self.deadline_s}, "
                f"retries={self.retries}; times must be above 0, and retries at least 0"
            )


class Attempts:
    """The attempts of one call."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._deadline_at = time.monotonic() + policy.deadline_s
        self._failures = 0

    def timeout_s(self) -> float:
        """Return the seconds that the next attempt may take."""
        left_s = self._deadline_at - time.monotonic()
        return max(min(self._policy.timeout_s, left_s), 0.001)

    def delay_s(self, error: ClientError) -> float:
        """Return the seconds to wait before the next attempt.

        ``Retry-After`` is honoured; otherwise the delay grows exponentially. Both are randomized,
        so that many clients do not return at the same time. Raises ``error`` if the request cannot
        succeed, was sent often enough, or would be sent after the deadline.
        """
        if not error.retryable:
            raise error
        if error.retry_after_s is None:
            self._failures += 1
            if self._failures > self._policy.retries:
                raise error
            backoff_s = min(FIRST_DELAY_S * 2.0 ** (self._failures - 1), MAX_DELAY_S)
            delay_s = backoff_s * random.uniform(0.5, 1)
        else:
            self._failures = 0
            delay_s = error.retry_after_s + FIRST_DELAY_S * random.uniform(0.5, 1)
        if time.monotonic() + delay_s >= self._deadline_at:
            raise error
        return delay_s
