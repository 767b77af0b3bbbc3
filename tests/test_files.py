import errno
import json
from pathlib import Path

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


@given(value=_JSON)
def test_json_is_the_same_bytes_for_the_same_value(value: object) -> None:
    """Writing JSON, reading it and writing it again gives the same bytes."""
    assert json_bytes(json.loads(json_bytes(value))) == json_bytes(value)


def test_broken_json_is_named(tmp_path: Path) -> None:
    """A file that is missing or isn't JSON is an error that names it."""
    path = tmp_path / "a.json"
    with pytest.raises(SegdistillError, match=r"a\.json: no such file"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(SegdistillError, match=r"a\.json: not valid JSON"):
        read_json(path)


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    """The digest of a file is SHA-256 of its content, as other tools compute it."""
    write_json(tmp_path / "a.json", {"b": 1})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "b": 1\n}\n'
    assert (
        sha256_of(tmp_path / "a.json")
        == "1b274b11a09018181231171a807ae52ba4fae824f7d9b45e3da3d2b030d69f03"
    )
