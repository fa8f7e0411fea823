"""Online models of durations and arrivals."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 50
"""Number of observations in the fit: some seconds of work, so that it follows changes of load."""


class LinearModel(NamedTuple):
    """``seconds(n) = slope_s * n + base_s``."""

    slope_s: float
    base_s: float

    def seconds(self, n: float) -> float:
        """Return the value at ``n``."""
        return self.slope_s * n + self.base_s


class LatencyModel:
    """Least-squares line through observed durations, with slope and base of at least zero.

    ``n`` is a number of items or any measure of work. ``known`` are initial pairs (n, seconds) from
    a warm-up. Live work often has a single size, which determines the current speed but not the
    slope; the known pairs therefore stay in the fit, scaled to the observed speed.
    """

    def __init__(self, known: Iterable[tuple[float, float]] = ()) -> None:
        self._observed: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._sums = _Sums()
        self._known: list[tuple[float, float]] = []
        # One object, so that no thread combines the slope of one fit with the base of another.
        self.line = LinearModel(0.0, 0.0)
        """The current fit; written by one thread, read by any."""
        pairs = list(known)
        for pair in pairs:
            self._sums.add(*pair)
        self._fit(self._sums)
        if pairs:
            ends = {min(pairs)[0], max(pairs)[0]}
            self._known = [(n, self.seconds(n)) for n in sorted(ends)]
        self._known_line = self.line
        self._sums = _Sums()

    def seconds(self, n: float) -> float:
        """Return the expected duration of work ``n``; 0 without known pairs and observations."""
        return self.line.seconds(n)

    def observe(self, n: float, seconds: float) -> None:
        """Add an observation: work ``n`` took ``seconds``."""
        if len(self._observed) == WINDOW:
            self._sums.add(*self._observed[0], weight=-1)
        self._observed.append((n, seconds))
        self._sums.add(n, seconds)
        slope_s, base_s = self._known_line
        expected_s = slope_s * self._sums.n + base_s * self._sums.weight
        sums = self._sums
        if expected_s > 0:
            scale = self._sums.s / expected_s
            sums = _Sums(sums.weight, sums.n, sums.s, sums.nn, sums.ns)
            for known_n, known_s in self._known:
                sums.add(known_n, scale * known_s)
        self._fit(sums)

    def _fit(self, sums: "_Sums") -> None:
        """Fit by least squares, on the boundary of the feasible region where necessary."""
        if sums.weight < 0.5:
            return
        mean_n, mean_s = sums.n / sums.weight, sums.s / sums.weight
        spread = sums.nn / sums.weight - mean_n**2
        slope_s = (sums.ns / sums.weight - mean_n * mean_s) / spread if spread > 1e-9 else 0.0
        base_s = mean_s - slope_s * mean_n
        if spread <= 1e-9 or base_s < 0:  # one size only: attribute all to the slope
            slope_s, base_s = mean_s / mean_n, 0.0
        elif slope_s < 0:
            slope_s, base_s = 0.0, mean_s
        self.line = LinearModel(slope_s, base_s)


@dataclass
class _Sums:
    """Weighted sums over the pairs (n, seconds)."""

    weight: float = 0.0
    n: float = 0.0
    s: float = 0.0
    nn: float = 0.0
    ns: float = 0.0

    def add(self, n: float, seconds: float, weight: float = 1.0) -> None:
        """Add a pair; a weight of -1 removes it."""
        self.weight += weight
        self.n += weight * n
        self.s += weight * seconds
        self.nn += weight * n * n
        self.ns += weight * n * seconds


class ArrivalRate:
    """Rate of arrivals, exponentially smoothed over about the last ten."""

    def __init__(self) -> None:
        self._last_at: float | None = None
        self._interval_s = math.inf

    def observe(self, arrived_at: float) -> None:
        """Add an arrival."""
        if self._last_at is not None:
            interval_s = arrived_at - self._last_at
            if math.isinf(self._interval_s):
                self._interval_s = interval_s
            self._interval_s += 0.1 * (interval_s - self._interval_s)
        self._last_at = arrived_at

    def expected(self, seconds: float) -> float:
        """Return the number of arrivals expected within ``seconds``."""
        return seconds / self._interval_s if self._interval_s > 0 else math.inf
