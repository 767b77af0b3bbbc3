"""The CPUs that this process may use."""

import math
import os
from pathlib import Path


def usable_cpus() -> int:
    """How many CPUs this process may use: its affinity, or less where a control group limits it."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota(Path("/sys/fs/cgroup")))))


def _quota(cgroup: Path) -> float:
    """CPUs that the control group grants (version 2, then 1); infinity where it doesn't limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return float("inf") if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")
