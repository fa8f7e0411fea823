"""CPU affinity of single-threaded runs: concurrent runs are pinned to different cores."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class CpuAffinity:
    """Pins threads to different cores, as long as there is a free core for each.

    Without pinning, the Linux scheduler occasionally lets two runs share one core for some
    milliseconds while another core is idle (docs/adr/0012-throughput-ceiling.md). A run is pinned
    to the core on which it starts, unless another run holds that core. Between runs the thread may
    move to any core, so no thread stays on a core that other work keeps busy, and all models share
    the cores.
    """

    def __init__(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._free = set(self._allowed)

    @contextmanager
    def pin_thread(self) -> Iterator[None]:
        """Pin the calling thread to one core for the block; no effect if no core is free."""
        core = self._acquire_core()
        if core is None:
            yield
            return
        try:
            _set_affinity({core})
            yield
        finally:
            _set_affinity(self._allowed)
            self._free.add(core)

    def _acquire_core(self) -> int | None:
        # Each call on the set is atomic for other threads, so no lock is needed.
        core: int = _C_LIBRARY.sched_getcpu()
        try:
            self._free.remove(core)
        except KeyError:
            try:
                core = self._free.pop()
            except KeyError:
                return None
        return core


_C_LIBRARY = ctypes.PyDLL(None)  # PyDLL keeps the GIL, which a call this short need not release


def _set_affinity(cores: set[int]) -> None:
    with suppress(OSError):  # a sandbox may forbid the call, and cores may be taken offline
        os.sched_setaffinity(0, cores)


CPU_AFFINITY = CpuAffinity()
"""Shared by all engines of the process."""
