"""What past durations say of the next one."""

from collections import deque
from collections.abc import Iterable

WINDOW = 50
"""Observations that count: some seconds of work, so that a change of load is soon believed."""


class LinearEstimate:
    """Learns ``seconds(n) = slope_s * n + base_s`` from what is observed, neither below zero.

    ``n`` counts items, or is any measure of work. ``known`` are pairs (n, seconds) to begin with,
    measured when nothing else ran. Live work is often of one size, which says how fast the machine
    is now but nothing of the slope; so the known pairs keep their say, scaled to the speed that
    was observed last.
    """

    def __init__(self, known: Iterable[tuple[float, float]] = ()) -> None:
        self._observed: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._known: list[tuple[float, float]] = []
        self.slope_s = 0.0
        self.base_s = 0.0
        pairs = list(known)
        self._fit(pairs)
        if pairs:
            ends = {min(pairs)[0], max(pairs)[0]}
            self._known = [(n, self.seconds(n)) for n in sorted(ends)]

    def seconds(self, n: float) -> float:
        """Expected duration for so much work, ``n``; 0 while nothing is known."""
        return self.slope_s * n + self.base_s

    def observe(self, n: float, seconds: float) -> None:
        """Learn that ``n`` took ``seconds``."""
        self._observed.append((n, seconds))
        expected = sum(self._known_seconds(size) for size, _ in self._observed)
        scale = sum(taken for _, taken in self._observed) / expected if expected else 0.0
        self._fit([*self._observed, *((size, scale * taken) for size, taken in self._known)])

    def _known_seconds(self, n: float) -> float:
        """What the known pairs alone say of ``n``, on the line through their ends."""
        if not self._known:
            return 0.0
        (low, low_s), (high, high_s) = self._known[0], self._known[-1]
        slope_s = (high_s - low_s) / (high - low) if high > low else 0.0
        return low_s + slope_s * (n - low)

    def _fit(self, pairs: list[tuple[float, float]]) -> None:
        """Least squares, on the border of the allowed region where its solution lies outside."""
        if not pairs:
            return
        count = len(pairs)
        mean_n = sum(n for n, _ in pairs) / count
        mean_s = sum(seconds for _, seconds in pairs) / count
        spread = sum((n - mean_n) ** 2 for n, _ in pairs)
        together = sum((n - mean_n) * (seconds - mean_s) for n, seconds in pairs)
        slope_s = together / spread if spread else 0.0
        base_s = mean_s - slope_s * mean_n
        if not spread or base_s < 0:  # one size only: it is all slope
            slope_s, base_s = mean_s / mean_n, 0.0
        elif slope_s < 0:
            slope_s, base_s = 0.0, mean_s
        self.slope_s, self.base_s = slope_s, base_s
