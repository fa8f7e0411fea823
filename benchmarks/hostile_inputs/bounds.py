"""The bounds, and the measurement of what reading an input takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CPU_S = 2.0
"""CPU time that reading an input may take beside the stated one, whatever the input is."""
MEMORY_BYTES = 256_000_000
"""Memory over that of the idle process, beside the stated memory."""
EVENT_LOOP_S = 0.050
"""Time that an input may occupy the event loop without interruption."""


@dataclass(frozen=True)
class Reading:
    """Result of reading an input: what became of it, and the cost that the service states.

    ``outcome``: ``accepted`` or the code or type of a documented error. ``event_loop_s``: CPU time
    of the part that runs in the event loop.
    """

    outcome: str
    stated_memory_bytes: float = 0
    stated_cpu_s: float = 0
    event_loop_s: float = 0


@dataclass(frozen=True)
class Measurement:
    """A reading with the resources that it took beside the stated ones."""

    outcome: str
    cpu_s: float
    memory_bytes: float
    event_loop_s: float
    error: str | None = None
    """What went wrong although the input was read within the bounds."""

    @property
    def violation(self) -> str | None:
        """The error or the bound that was exceeded; None if all hold."""
        if self.error is not None:
            return self.error
        if self.cpu_s > CPU_S:
            return f"{self.cpu_s:.1f} CPU seconds beside the stated ones"
        if self.memory_bytes > MEMORY_BYTES:
            return f"{self.memory_bytes / 1e6:.0f} MB beside the stated ones"
        if self.event_loop_s > EVENT_LOOP_S:
            return f"{1000 * self.event_loop_s:.0f} ms in the event loop"
        return None


def measure(read: Callable[[bytes], Reading], body: bytes) -> Measurement:
    """Read the input in this process, whose peak memory is reset before; for Linux."""
    Path("/proc/self/clear_refs").write_text("5")
    idle_bytes = memory_bytes("self", "VmRSS")
    began_at = time.process_time()
    reading = read(body)
    cpu_s = time.process_time() - began_at
    peak_bytes = memory_bytes("self", "VmHWM") - idle_bytes
    return Measurement(
        reading.outcome,
        cpu_s - reading.stated_cpu_s,
        peak_bytes - reading.stated_memory_bytes,
        reading.event_loop_s,
    )


def memory_bytes(pid: int | str, field: str) -> int:
    """Return a field of ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))
