"""CPU affinity and the quotas of control groups limit the number of cores."""

import os
from pathlib import Path

import pytest

from service.cpu_cores import available_cores, share_quota


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


CASES = {
    "no control groups": ({}, 16),
    "v2, a container": ({"": "0::/\n", "cpu.max": "200000 100000\n"}, 2),
    "v2, a part of a core": ({"": "0::/\n", "cpu.max": "50000 100000"}, 1),
    "v2, one core and a half": ({"": "0::/\n", "cpu.max": "150000 100000"}, 2),
    "v2, no quota": ({"": "0::/\n", "cpu.max": "max 100000"}, 16),
    "v2, more than the affinity": ({"": "0::/\n", "cpu.max": "6400000 100000"}, 16),
    "v2, the quota of an outer group": (
        {
            "": "0::/a/b\n",
            "cpu.max": "max 100000",
            "a/cpu.max": "300000 100000",
            "a/b/cpu.max": "800000 100000",
        },
        3,
    ),
    "v1": (
        {
            "": "5:memory:/x\n4:cpu,cpuacct:/x\n",
            "cpu/x/cpu.cfs_quota_us": "400000",
            "cpu/x/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    "v1, the path of the host in a container": (
        {
            "": "4:cpu,cpuacct:/docker/1\n",
            "cpu/cpu.cfs_quota_us": "250000",
            "cpu/cpu.cfs_period_us": "100000",
        },
        3,
    ),
    "v1, no quota": (
        {"": "4:cpu:/\n", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        16,
    ),
}


@pytest.mark.parametrize(("files", "cores"), CASES.values(), ids=CASES)
def test_quotas_limit_the_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, content in files.items():
        path = tmp_path / (f"sys/fs/cgroup/{name}" if name else "proc/self/cgroup")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("400000", 2), ("300000", 2), ("6400000", 16)])
def test_workers_share_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr("service.cpu_cores._processes", 1)
    share_quota(2)
    for name, content in (("proc/self/cgroup", "0::/"), ("sys/fs/cgroup/cpu.max", quota)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}{' 100000' * (name[0] == 's')}\n")
    assert available_cores(tmp_path) == cores
