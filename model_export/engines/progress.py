"""Progress of a build as one fraction, from the nested phases that the library reports."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[float, str], None]
"""Receives the completed fraction, 0 to 1, and the name of the current phase."""

_MIN_INCREMENT = 0.01


@dataclass
class _Phase:
    parent: str | None
    num_steps: int
    completed: int = 0


class PhaseProgress:
    """Converts nested phases to the fraction of completed steps, which never decreases.

    Steps are counted, not timed: they take unequal time. Thread-safe, because the library calls
    from its own threads.
    """

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._reported = 0.0
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """Begin a phase that is part of the current step of ``parent``."""
        with self._lock:
            self._phases[name] = _Phase(parent, num_steps)
            self._update(name)

    def complete(self, name: str, step: int) -> None:
        """Complete a step of a phase; steps count from 0."""
        with self._lock:
            if name in self._phases:
                self._phases[name].completed = step + 1
            self._update(name)

    def finish(self, name: str) -> None:
        """End a phase, including any steps that were not completed."""
        with self._lock:
            self._phases.pop(name, None)

    def _update(self, name: str) -> None:
        fraction = max((self._fraction(root) for root in self._roots()), default=0.0)
        if fraction >= self._reported + _MIN_INCREMENT:
            self._reported = fraction
            self._report(fraction, name)

    def _roots(self) -> list[str]:
        return [name for name, phase in self._phases.items() if phase.parent not in self._phases]

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        children = [
            self._fraction(key) for key, child in self._phases.items() if child.parent == name
        ]
        return min(1.0, (phase.completed + max(children, default=0.0)) / phase.num_steps)
