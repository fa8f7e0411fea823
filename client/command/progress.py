"""Progress bar and summary of a run."""

import time
from collections import Counter
from dataclasses import dataclass, field

from client.command.outputs import Outcome


@dataclass
class Progress:
    """Counts of the run for the summary."""

    skipped: int
    images: int = 0
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    detections: int = 0
    began_at: float = field(default_factory=time.perf_counter)

    def add(self, outcome: Outcome) -> None:
        """Count one image."""
        self.images += 1
        if outcome.result is None:
            self.failed += 1
            self.errors[str(outcome.error)] += 1
        else:
            self.detections += len(outcome.result.detections)

    def summary(self) -> str:
        """Return one line, and the most frequent errors."""
        seconds = time.perf_counter() - self.began_at
        line = (
            f"{self.images} images in {seconds:.1f} s ({self.images / seconds:.1f} images/s), "
            f"{self.detections} detections, {self.failed} images failed"
        )
        if self.skipped:
            line += f", {self.skipped} skipped as they were done before"
        lines = [f"  {count} x {message}" for message, count in self.errors.most_common(3)]
        return "\n".join([line, *lines])
