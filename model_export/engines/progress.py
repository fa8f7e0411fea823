"""How far a build is, from the phases that the library tells of."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[float, str], None]
"""Told the share that is done, 0 to 1, and what is being done."""

_FINEST = 0.01


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseProgress:
    """Nested phases as one share of their steps, which only grows: steps take unequal time.

    The library calls from threads of its own.
    """

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self._told = 0.0
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of ``steps`` steps, as part of a step of ``parent``."""
        with self._lock:
            self._phases[name] = _Phase(parent, steps)
            self._update(name)

    def complete(self, name: str, step: int) -> None:
        """Finish a step, counted from 0, of a phase."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._update(name)

    def finish(self, name: str) -> None:
        """Finish a phase, whatever is left of it."""
        with self._lock:
            self._phases.pop(name, None)

    def _update(self, name: str) -> None:
        share = max((self._share(root) for root in self._roots()), default=0.0)
        if share >= self._told + _FINEST:
            self._told = share
            self._tell(share, name)

    def _roots(self) -> list[str]:
        return [name for name, phase in self._phases.items() if phase.parent not in self._phases]

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        parts = [self._share(key) for key, part in self._phases.items() if part.parent == name]
        return min(1.0, (phase.done + max(parts, default=0.0)) / phase.steps)
