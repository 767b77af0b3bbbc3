import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdistill.files import (
    DiskFullError,
    SegdistillError,
    atomic_folder,
    atomic_path,
    json_bytes,
    read_json,
    sha256_of,
    visible,
    write_json,
)

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_a_file_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    """While a file is being written its name holds the old content, afterwards the new."""
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert partial.suffixes == [".nii", ".gz"]
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    """An error while writing leaves the old file and nothing beside it."""
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_swapped_as_a_whole(tmp_path: Path) -> None:
    """A new folder replaces the old one with all that was in it, and a failed one leaves it."""
    target = tmp_path / "folder"
    with atomic_folder(target) as partial:
        (partial / "one").write_text("1")
    with atomic_folder(target) as partial:
        (partial / "two").write_text("2")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as partial:
        (partial / "three").write_text("3")
        raise ZeroDivisionError
    assert [path.name for path in target.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_the_output_it_hit(tmp_path: Path, number: int) -> None:
    """A full disk inside a stage's output folder is an error that names the folder; nothing remains."""
    target = tmp_path / "output"
    with (
        pytest.raises(DiskFullError, match=f"^{target}: the disk is full") as caught,
        atomic_folder(target) as out,
        atomic_path(out / "inner.npy") as partial,
    ):
        partial.write_bytes(b"some")
        raise OSError(number, "no space")
    assert "Free some space" in str(caught.value)
    assert not list(tmp_path.iterdir())


def _no_exchange(*_: object) -> None:
    raise OSError(errno.EINVAL, "as NFS answers")


@contextmanager
def _killed_at(step: int) -> Iterator[None]:
    """Kill this process before the line number ``step`` that the code under test executes."""
    code = {sys.modules["segdistill.files"].__file__, shutil.__file__}
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in code:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    yield
    sys.settrace(None)


def _kill_at_every_step(write: Callable[[], None]) -> Iterator[None]:
    """Run ``write`` in processes that are killed one line later each time, until one isn't."""
    for step in range(10_000):
        child = os.fork()
        if not child:
            with _killed_at(step):
                write()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert step > 50  # it was killed at all
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield


def _folder_of(target: Path, text: str) -> None:
    with atomic_folder(target) as partial:
        (partial / "inner").mkdir()
        (partial / "one").write_text(text)
        (partial / "inner" / "two").write_text(text)


def _whole(target: Path) -> str:
    """What a folder of :func:`_folder_of` holds, which is all of one content."""
    text = (target / "one").read_text()
    assert (target / "inner" / "two").read_text() == text
    assert sorted(path.name for path in target.rglob("*")) == ["inner", "one", "two"]
    return text


@pytest.fixture
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written outlives a killed process without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("_no_power_cut")
def test_a_folder_is_old_or_new_wherever_the_process_is_killed(tmp_path: Path) -> None:
    """Killed at any line of the swap, the folder is wholly old or new, and the next one replaces it."""
    target = tmp_path / "folder"
    _folder_of(target, "old")
    seen = set()
    for _ in _kill_at_every_step(lambda: _folder_of(target, "new")):
        seen.add(_whole(target))
        assert visible(tmp_path.iterdir()) == [target]
        _folder_of(target, "old")
        assert _whole(target) == "old"
        assert list(tmp_path.iterdir()) == [target]
    assert seen == {"old", "new"}
    assert _whole(target) == "new"


@pytest.mark.usefixtures("_no_power_cut")
def test_a_folder_is_never_lost_where_two_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an exchange in one step, the next write beside the folder puts back what was set aside."""
    monkeypatch.setattr("segdistill.files._exchange", _no_exchange)
    target = tmp_path / "folder"
    _folder_of(target, "old")
    seen = set()
    for _ in _kill_at_every_step(lambda: _folder_of(target, "new")):
        seen.add(_whole(target) if target.exists() else "set aside")
        write_json(tmp_path / "other.json", 1)
        assert _whole(target) in ("old", "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "other.json"]
        _folder_of(target, "old")
    assert seen == {"old", "set aside", "new"}
    assert _whole(target) == "new"


@pytest.mark.usefixtures("_no_power_cut")
def test_a_first_folder_is_absent_or_whole_wherever_the_process_is_killed(tmp_path: Path) -> None:
    """Killed at any line of its making, a folder that wasn't there is absent or whole."""
    target = tmp_path / "folder"
    seen = set()
    for _ in _kill_at_every_step(lambda: _folder_of(target, "new")):
        seen.add(_whole(target) if target.exists() else "absent")
        shutil.rmtree(target, ignore_errors=True)
    assert seen == {"absent", "new"}


@pytest.mark.usefixtures("_no_power_cut")
def test_a_file_is_old_or_new_wherever_the_process_is_killed(tmp_path: Path) -> None:
    """Killed at any line of the write, a file is wholly old or new, and the next write clears up."""
    target = tmp_path / "a.json"
    write_json(target, "old")
    seen = set()
    for _ in _kill_at_every_step(lambda: write_json(target, "new")):
        seen.add(read_json(target))
        assert visible(tmp_path.iterdir()) == [target]
        write_json(target, "old")
        assert list(tmp_path.iterdir()) == [target]
    assert seen == {"old", "new"}


def test_what_a_running_process_makes_is_left_alone(tmp_path: Path) -> None:
    """A write beside a folder that another process is making leaves that one, until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from segdistill.files import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]) / 'slow') as partial:\n"
        "    (partial / 'a').write_text('a'); print(flush=True); time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    write_json(tmp_path / "a.json", 1)
    assert len(list(tmp_path.glob(".partial-*/slow/a"))) == 1
    other.kill()
    other.communicate()
    write_json(tmp_path / "b.json", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


@pytest.mark.usefixtures("_no_power_cut")
def test_many_processes_write_one_file_at_once(tmp_path: Path) -> None:
    """Writers of one target at once, each clearing up beside it, all succeed and leave nothing."""
    children = []
    for number in range(6):
        children.append(os.fork())
        if not children[-1]:
            status = 1
            try:
                for _ in range(40):
                    write_json(tmp_path / "a.json", number)
                    _folder_of(tmp_path / f"folder-{number}", "x")
                status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert read_json(tmp_path / "a.json") in range(6)
    assert all(_whole(tmp_path / f"folder-{number}") == "x" for number in range(6))
    assert not list(tmp_path.glob(".*"))


def test_a_file_system_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no locks, writing works, and what another process left is not removed."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".partial-left").mkdir()
    _folder_of(tmp_path / "folder", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-left", "folder"]


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of a folder is flushed once, then the folder is renamed, then its parent is flushed."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"rename {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    with atomic_folder(tmp_path / "folder") as partial:
        (partial / "one").write_text("1")
        write_json(partial / "inner" / "two.json", 2)
    assert done == [
        *("rename two.json", "two.json", "inner", "one", "folder"),
        *("rename folder", tmp_path.name),
    ]
    done.clear()
    write_json(tmp_path / "a.json", 1)
    assert done == ["a.json", "rename a.json", tmp_path.name]


def test_a_link_into_a_cache_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    """A file and a folder of links, as DVC leaves them, are replaced; what they point to stays."""
    cache = tmp_path / "cache"
    cache.write_text("cached")
    cache.chmod(0o444)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one").symlink_to(cache)
    (tmp_path / "a.json").symlink_to(cache)
    write_json(tmp_path / "a.json", 1)
    _folder_of(tmp_path / "out", "new")
    assert not (tmp_path / "a.json").is_symlink()
    assert _whole(tmp_path / "out") == "new"
    assert cache.read_text() == "cached"
    assert cache.stat().st_mode & 0o777 == 0o444


def test_hidden_paths_are_left_out(tmp_path: Path) -> None:
    """A hidden name is left out; one inside a hidden folder too, but not for a folder above."""
    base = tmp_path / ".home" / "sites"
    for name in ("b/m", "a/m", ".partial-x/c/m", ".old/m"):
        (base / name).parent.mkdir(parents=True)
        (base / name).touch()
    assert visible(base.iterdir()) == [base / "a", base / "b"]
    assert visible(base.rglob("m"), base) == [base / "a" / "m", base / "b" / "m"]


@given(value=_JSON)
def test_json_is_the_same_bytes_for_the_same_value(value: object) -> None:
    """Writing JSON, reading it and writing it again gives the same bytes."""
    assert json_bytes(json.loads(json_bytes(value))) == json_bytes(value)


def test_broken_json_is_named(tmp_path: Path) -> None:
    """A file that is missing, isn't JSON or can't be read is an error that names it."""
    path = tmp_path / "a.json"
    with pytest.raises(SegdistillError, match=r"a\.json: no such file"):
        read_json(path)
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(SegdistillError, match=r"a\.json: not valid JSON"):
            read_json(path)
    with pytest.raises(SegdistillError, match="can't be read"):
        read_json(tmp_path)


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    """The digest of a file is SHA-256 of its content, as other tools compute it."""
    write_json(tmp_path / "a.json", {"b": 1})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "b": 1\n}\n'
    assert (
        sha256_of(tmp_path / "a.json")
        == "1b274b11a09018181231171a807ae52ba4fae824f7d9b45e3da3d2b030d69f03"
    )
