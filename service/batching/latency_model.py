"""What past durations say of the next one."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 50
"""Observations that count: some seconds of work, so that a change of load is soon believed."""


class LinearModel(NamedTuple):
    """``seconds(n) = slope_s * n + base_s``."""

    slope_s: float
    base_s: float

    def seconds(self, n: float) -> float:
        """Its value at ``n``."""
        return self.slope_s * n + self.base_s


class LatencyModel:
    """Learns a line from what is observed, neither part below zero.

    ``n`` counts items, or is any measure of work. ``known`` are pairs (n, seconds) to begin with,
    measured when nothing else ran. Live work is often of one size, which says how fast the machine
    is now but nothing of the slope; so the known pairs keep their say, scaled to the speed that
    was observed last.
    """

    def __init__(self, known: Iterable[tuple[float, float]] = ()) -> None:
        self._observed: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._sums = _Sums()
        self._known: list[tuple[float, float]] = []
        # One object: other threads never see the slope of one line with the base of another.
        self.line = LinearModel(0.0, 0.0)
        """Read by any thread, changed by one."""
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
        """Expected duration for so much work, ``n``; 0 while nothing is known."""
        return self.line.seconds(n)

    def observe(self, n: float, seconds: float) -> None:
        """Learn that ``n`` took ``seconds``."""
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
        """Least squares, on the border of the allowed region where its solution lies outside."""
        if sums.weight < 0.5:
            return
        mean_n, mean_s = sums.n / sums.weight, sums.s / sums.weight
        spread = sums.nn / sums.weight - mean_n**2
        slope_s = (sums.ns / sums.weight - mean_n * mean_s) / spread if spread > 1e-9 else 0.0
        base_s = mean_s - slope_s * mean_n
        if spread <= 1e-9 or base_s < 0:  # one size only: it is all slope
            slope_s, base_s = mean_s / mean_n, 0.0
        elif slope_s < 0:
            slope_s, base_s = 0.0, mean_s
        self.line = LinearModel(slope_s, base_s)


@dataclass
class _Sums:
    """What least squares need of the pairs (n, seconds)."""

    weight: float = 0.0
    n: float = 0.0
    s: float = 0.0
    nn: float = 0.0
    ns: float = 0.0

    def add(self, n: float, seconds: float, weight: float = 1.0) -> None:
        """Add a pair, or take it away again with the weight -1."""
        self.weight += weight
        self.n += weight * n
        self.s += weight * seconds
        self.nn += weight * n * n
        self.ns += weight * n * seconds
