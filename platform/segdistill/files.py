"""Files that are either whole or absent: atomic writes, digests, JSON, and the base error."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class SegdistillError(Exception):
    """Something the user can mend; the message names the file, what is wrong and what to do."""


class DiskFullError(SegdistillError):
    """No space was left; what was being written is gone, what was there before is as it was."""

    def __init__(self, target: Path) -> None:
        super().__init__(
            f"{target}: the disk is full, nothing was written. "
            f"Free some space under {target.parent} and run the same command again."
        )


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary file name beside ``target``; rename it to ``target`` only on success.

    The temporary name keeps the target's suffixes (``.nii.gz``), which many writers look at.
    On any failure the temporary file is removed and an older ``target`` stays as it was.

    Raises:
        DiskFullError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(target.suffixes[-2:])
    handle, name = tempfile.mkstemp(prefix=".partial-", suffix=suffix, dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        with _disk_full_named(target):
            yield partial
            partial.chmod(0o644)
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``target``; swap it in for ``target`` only on success.

    Raises:
        DiskFullError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        with _disk_full_named(target):
            yield partial
            partial.chmod(0o755)
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
                target.replace(old / target.name)
                partial.replace(target)
                shutil.rmtree(old)
            else:
                partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def visible(paths: Iterable[Path], below: Path | None = None) -> list[Path]:
    """The paths, sorted, without the hidden ones: those may be half made.

    Args:
        paths: as of ``glob`` and ``iterdir``, which give hidden ones too.
        below: a folder that holds them all: what lies in a hidden folder below it is left out as well.
    """
    return sorted(
        path
        for path in paths
        if not any(
            part.startswith(".") for part in (path.relative_to(below).parts if below else [path.name])
        )
    )


@contextmanager
def _disk_full_named(target: Path) -> Iterator[None]:
    try:
        yield
    except DiskFullError as error:
        # A file inside an atomic folder: name the folder, whose name outlives the failure.
        raise DiskFullError(target) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(target) from error
        raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_bytes(value: Any) -> bytes:
    """``value`` as JSON that is the same bytes for the same value: sorted keys, final newline."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically, in the form of :func:`json_bytes`."""
    with atomic_path(path) as partial:
        partial.write_bytes(json_bytes(value))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SegdistillError: the file is missing or isn't JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SegdistillError(f"{path}: no such file.") from error
    except ValueError as error:
        raise SegdistillError(f"{path}: not valid JSON ({error}).") from error


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in ``folder``, sorted by name; none where there is no such folder."""
    return [path for path in visible(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []


def unfetched(path: Path) -> bool:
    """Whether this is a link to a file that isn't on this machine, as git-annex and DVC leave them."""
    return path.is_symlink() and not path.exists()
