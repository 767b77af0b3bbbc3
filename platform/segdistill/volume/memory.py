"""How much memory this process may still take."""

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> float:
    """Bytes that can be had without swapping: the machine's, or less where a control group says so.

    Returns:
        Infinity where the system doesn't say (not Linux).
    """
    free = float("inf")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = float(line.split()[1]) * 1024
    except OSError:
        return free
    # Version 2 of control groups, then version 1; both as a container sees them.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (_CGROUP / limit).read_text().strip()
            if text != "max":
                free = min(free, float(text) - float((_CGROUP / used).read_text()))
        except (OSError, ValueError):
            continue
    return max(free, 0.0)
