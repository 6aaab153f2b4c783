"""The CPU: how many of its cores this process may use, and what Linux knows of it."""

import math
import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"


def usable_cores() -> int:
    """Count the cores that the scheduler allows, and no more than a container's quota pays for.

    Threads beyond the quota are stopped for the rest of each period, in the middle of a batch.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        allowed = os.cpu_count() or 1
    try:
        quota, period = CGROUP.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or no quota
        return allowed


def read_cpuinfo() -> dict[str, str]:
    """Read the fields that Linux gives of the last core, such as `model name` and `flags`; empty elsewhere."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
