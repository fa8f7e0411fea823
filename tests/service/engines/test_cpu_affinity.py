"""Runs of the engine that go on at the same time are kept apart, and nothing stays pinned."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engines.cpu_affinity import Cores

ALLOWED = os.sched_getaffinity(0)


def cores_of_runs(cores: Cores, count: int) -> list[set[int]]:
    """What each of so many runs at a time may use, and see to it that all are free again after."""
    together = threading.Barrier(count)

    def run(_: int) -> set[int]:
        with cores.hold():
            during = os.sched_getaffinity(0)
            together.wait(10)
        assert os.sched_getaffinity(0) == ALLOWED
        return during

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def test_each_run_has_a_core_of_its_own() -> None:
    cores = Cores()
    for _ in range(3):
        held = cores_of_runs(cores, len(ALLOWED))
        assert sorted(held, key=min) == [{core} for core in sorted(ALLOWED)]


def test_more_runs_than_cores_go_where_the_kernel_sees_fit() -> None:
    held = cores_of_runs(Cores(), len(ALLOWED) + 2)
    assert sum(len(allowed) == 1 for allowed in held) >= len(ALLOWED)
    assert held.count(ALLOWED) >= 2


def test_a_run_that_fails_gives_its_core_back() -> None:
    cores = Cores()
    for _ in range(len(ALLOWED) + 1):
        with pytest.raises(ValueError, match="no memory"), cores.hold():
            raise ValueError("no memory")
    assert sorted(cores_of_runs(cores, len(ALLOWED)), key=min) == [{one} for one in sorted(ALLOWED)]


def test_a_sandbox_that_forbids_it_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError("seccomp")

    cores = Cores()
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with cores.hold():
        assert os.sched_getaffinity(0) == ALLOWED
