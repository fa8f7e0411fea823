"""Concurrent runs are pinned to different cores, and no thread stays pinned after its run."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engines.cpu_affinity import CpuAffinity

ALLOWED = os.sched_getaffinity(0)


def affinities_during_runs(affinity: CpuAffinity, count: int) -> list[set[int]]:
    """Return the affinity of each of ``count`` concurrent runs; it must be reset afterwards."""
    barrier = threading.Barrier(count)

    def run(_: int) -> set[int]:
        with affinity.pin_thread():
            during = os.sched_getaffinity(0)
            barrier.wait(10)
        assert os.sched_getaffinity(0) == ALLOWED
        return during

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def test_each_run_is_pinned_to_a_different_core() -> None:
    affinity = CpuAffinity()
    for _ in range(3):
        pinned = affinities_during_runs(affinity, len(ALLOWED))
        assert sorted(pinned, key=min) == [{core} for core in sorted(ALLOWED)]


def test_runs_beyond_the_number_of_cores_are_not_pinned() -> None:
    pinned = affinities_during_runs(CpuAffinity(), len(ALLOWED) + 2)
    assert sum(len(allowed) == 1 for allowed in pinned) >= len(ALLOWED)
    assert pinned.count(ALLOWED) >= 2


def test_a_failed_run_releases_its_core() -> None:
    affinity = CpuAffinity()
    for _ in range(len(ALLOWED) + 1):
        with pytest.raises(ValueError, match="no memory"), affinity.pin_thread():
            raise ValueError("no memory")
    assert sorted(affinities_during_runs(affinity, len(ALLOWED)), key=min) == [
        {core} for core in sorted(ALLOWED)
    ]


def test_ignores_a_sandbox_that_forbids_pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError("seccomp")

    affinity = CpuAffinity()
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with affinity.pin_thread():
        assert os.sched_getaffinity(0) == ALLOWED
