"""A core for each run, which the kernel's scheduler does not always see to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Cores:
    """Keeps runs that take one thread each apart, as long as there are as many cores as runs.

    Left alone, Linux now and then has two of them take turns on one core for some milliseconds
    while another core is idle (docs/adr/0012-the-ceiling.md). Between runs a thread is free
    again, and the next run may get another core: nothing is tied to one that somebody else keeps
    busy, and models share the cores.
    """

    def __init__(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._free = list(self._allowed)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the calling thread on one core, if one is free, until the block ends."""
        try:
            core = self._free.pop()
        except IndexError:
            yield
            return
        try:
            _stay_on({core})
            yield
        finally:
            _stay_on(self._allowed)
            self._free.append(core)


def _stay_on(cores: set[int]) -> None:
    with suppress(OSError):  # a sandbox may forbid it, and cores may be taken away
        os.sched_setaffinity(0, cores)


CORES = Cores()
"""All engines of the process share them."""
