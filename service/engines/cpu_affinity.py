"""A core for each run, which the kernel's scheduler does not always see to."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Cores:
    """Keeps runs that take one thread each apart, as long as there are as many cores as runs.

    Left alone, Linux now and then has two of them take turns on one core for some milliseconds
    while another core is idle (docs/adr/0012-the-ceiling.md). A run stays on the core that the
    kernel began it on, unless that is another run's; between runs a thread is free again. So
    nothing is tied to a core that somebody else keeps busy, and models share the cores.
    """

    def __init__(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._free = set(self._allowed)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the calling thread on one core, if one is free, until the block ends."""
        core = self._take()
        if core is None:
            yield
            return
        try:
            _stay_on({core})
            yield
        finally:
            _stay_on(self._allowed)
            self._free.add(core)

    def _take(self) -> int | None:
        # Each call on the set is one step for other threads.
        core: int = _C_LIBRARY.sched_getcpu()
        try:
            self._free.remove(core)
        except KeyError:
            try:
                core = self._free.pop()
            except KeyError:
                return None
        return core


_C_LIBRARY = ctypes.PyDLL(None)  # PyDLL: a call this short need not let go of Python's lock


def _stay_on(cores: set[int]) -> None:
    with suppress(OSError):  # a sandbox may forbid it, and cores may be taken away
        os.sched_setaffinity(0, cores)


CORES = Cores()
"""All engines of the process share them."""
