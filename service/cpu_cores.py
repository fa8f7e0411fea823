"""Number of CPU cores that the process may use."""

import math
import os
from pathlib import Path

_processes = 1
_limit = math.inf


def share_quota(processes: int) -> None:
    """Divide the CPU quota by the number of worker processes; each has an affinity of its own."""
    global _processes
    _processes = processes


def limit_cores(cores: float) -> None:
    """Limit the number of cores, where another program distributes them without an affinity."""
    global _limit
    _limit = cores


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores: those of the CPU affinity, limited by the CPU quota.

    :func:`limit_cores` limits them further.

    A quota of 1.5 cores counts as 2: threads that exceed it are throttled, but fewer threads could
    not use it. ``root``: directory that contains ``proc`` and ``sys``.
    """
    quota = _cpu_quota(root) / _processes
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), quota, _limit)))


def _cpu_quota(root: Path) -> float:
    """Return the quota in cores of the control groups of the process; infinity without one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = mount / path.lstrip("/")
        # A group is limited by those that contain it. In a container without a namespace of
        # control groups the path does not exist, and the mounted directory is the group itself.
        quotas += [read(part) for part in (group, *group.parents) if mount in (part, *part.parents)]
    return min(quotas)


def _quota_v2(group: Path) -> float:
    return _ratio(_words(group / "cpu.max"))


def _quota_v1(group: Path) -> float:
    return _ratio([*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # no such controller or group
        return []


def _ratio(words: list[str]) -> float:
    """Return quota / period; infinity for ``max``, -1 and missing files."""
    if len(words) != 2 or not words[0].isdecimal() or not int(words[1]):
        return math.inf
    return int(words[0]) / int(words[1])
