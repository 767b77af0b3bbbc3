"""How much memory is free, on trees of files as Linux shows them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segdistill.volume.memory import available_bytes

GB = 10**9


def tree(root: Path, group: str, files: dict[str, object]) -> None:
    """Write files of a control group, below a root whose machine has 100 GB available."""
    (root / "proc" / "self").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {100 * GB // 1024} kB\n")
    folder = root / "sys" / "fs" / "cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def of_version_2(limit: object, used: int, inactive: int = 0) -> dict[str, object]:
    """The files of a group of version 2."""
    statistics = f"anon 1\nfile {inactive + 7}\ninactive_file {inactive}\nactive_file 7"
    return {"memory.max": limit, "memory.current": used, "memory.stat": statistics}


def of_version_1(limit: object, used: int, inactive: int = 0) -> dict[str, object]:
    """The files of a group of version 1."""
    statistics = f"cache 9\ninactive_file 3\ntotal_inactive_file {inactive}"
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used,
        "memory.stat": statistics,
    }


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("", of_version_2(8 * GB, 7 * GB, 5 * GB)),
        ("memory", of_version_1(8 * GB, 7 * GB, 5 * GB)),
    ],
)
def test_file_cache_that_can_be_taken_back_is_free(
    tmp_path: Path, group: str, files: dict[str, object]
) -> None:
    """In a container whose usage is mostly inactive file cache, that cache counts as free."""
    tree(tmp_path, group, files)
    assert available_bytes(tmp_path) == pytest.approx(6 * GB)


def test_the_machine_counts_where_no_group_limits(tmp_path: Path) -> None:
    """Without a limit, or with one that the machine doesn't reach, the machine's memory counts."""
    tree(tmp_path, "", of_version_2("max", 7 * GB))
    tree(tmp_path, "memory", of_version_1(9223372036854771712, 7 * GB))
    assert available_bytes(tmp_path) == pytest.approx(100 * GB, rel=1e-6)


@pytest.mark.parametrize("tightest", range(3))
@pytest.mark.parametrize(
    ("base", "line", "files"), [("", "0::", of_version_2), ("memory", "4:memory:", of_version_1)]
)
def test_the_tightest_of_nested_groups_counts(
    tmp_path: Path, tightest: int, base: str, line: str, files: Callable[..., dict[str, object]]
) -> None:
    """Of the process's own group and those above it, the one that leaves least counts."""
    for number, group in enumerate(("a.slice", "a.slice/b.service", "a.slice/b.service/c")):
        free = 1 if number == tightest else 3
        tree(tmp_path, str(Path(base, group)), files((free + 2) * GB, 3 * GB, GB))
    (tmp_path / "proc/self/cgroup").write_text(f"1:name=systemd:/x\n{line}/a.slice/b.service/c\n")
    assert available_bytes(tmp_path) == pytest.approx(1 * GB)


def test_a_group_that_the_container_does_not_see_is_passed_over(tmp_path: Path) -> None:
    """Where the process's path is the host's, the first folder of the visible tree is its group."""
    tree(tmp_path, "memory", of_version_1(2 * GB, GB))
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/docker/0123\n0::/../..\n")
    assert available_bytes(tmp_path) == pytest.approx(1 * GB)


def test_more_than_the_limit_is_nothing_free(tmp_path: Path) -> None:
    """Usage over the limit leaves nothing, not less than nothing."""
    tree(tmp_path, "", of_version_2(GB, 2 * GB))
    assert available_bytes(tmp_path) == 0


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    """Without /proc, as much is free as anybody asks for."""
    assert available_bytes(tmp_path) == float("inf")
