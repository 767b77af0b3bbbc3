"""How much memory this process may still take."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from segdistill.volume.grid import VolumeError

_ROOT = Path("/")


class TooLittleMemoryError(VolumeError):
    """A scan that is larger than the memory that is free now; the message has both numbers."""


def available_bytes(root: Path = _ROOT) -> float:
    """Bytes that can be had without swapping: the machine's, or less where a control group says so.

    Of a control group, what counts as used is what the system can't take back at once: its usage without
    the file cache that nobody has touched lately (``inactive_file``), as Kubernetes counts its working
    set. Groups are nested, so the tightest of this process's own and those above it counts.

    Args:
        root: the file system's root, with ``proc`` and ``sys/fs/cgroup``.

    Returns:
        Infinity where the system doesn't say (not Linux).
    """
    free = float("inf")
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = float(line.split()[1]) * 1024
    except OSError:
        return free
    for group in _groups(root):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),  # version 2 of control groups
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            try:
                most, taken = (float((group / name).read_text()) for name in (limit, used))
            except (OSError, ValueError):  # no such group; or no limit, which is written "max"
                continue
            free = min(free, most - taken + _statistic(group, cache))
    return max(free, 0.0)


def _statistic(group: Path, name: str) -> float:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0.0
    return float(dict(line.split() for line in lines).get(name, 0))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups for memory, and of all above them that are visible.

    In a container, the path that ``/proc/self/cgroup`` gives may be the host's; its own group is then
    the first folder of the tree that it sees.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    tree = root / "sys/fs/cgroup"
    for line in ["0::/", ":memory:/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = tree / "memory" if controllers else tree
        own = PurePosixPath(path)
        yield from (base / group.relative_to("/") for group in (own, *own.parents))
