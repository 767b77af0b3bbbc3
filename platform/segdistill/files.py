"""Files that are either whole or absent: atomic writes, digests, JSON, and the base error.

What is being made lies in a hidden folder beside its target, ``.partial-*``, under its own name, and is
renamed when it is whole. Bytes are on the disk before the rename, and the rename before the block ends,
so a power cut leaves the old or the new. Inside a folder that is itself being made nothing is flushed:
it is once, as a whole, before it gets its name.

A process that is killed leaves its hidden folder behind. Whoever writes beside it next removes it; a
lock, which the system takes from a process that ends, tells it from one that is still being filled.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_PARTIAL = ".partial-"
_LOCK = ".lock"
_OLD = ".old"  # what lay at the target, while a swap takes two steps
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


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
    """Yield a file name to write to; rename that file to ``target`` only on success.

    The file has the target's own name, whose suffixes (``.nii.gz``) many writers look at. On any failure
    an older ``target`` stays as it was. A target that is a link, as DVC makes them into its cache, is
    replaced; what it points to isn't touched.

    Raises:
        DiskFullError: the disk is full.
    """
    with _workshop(target) as partial:
        yield partial
        partial.chmod(0o644)
        if not _in_the_making(target):
            _flush(partial)
        partial.replace(target)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to fill; swap it in for ``target`` only on success.

    The swap is one step where the file system can exchange two names (Linux, local disks). Elsewhere
    (NFS) it takes two: what lay there is set aside first. If the process is killed between them, the
    target is missing until something is written beside it again, which puts the old one back.

    Raises:
        DiskFullError: the disk is full.
    """
    with _workshop(target) as partial:
        partial.mkdir()
        yield partial
        partial.chmod(0o755)
        if not _in_the_making(target):
            _flush_tree(partial)
        if os.path.lexists(target):
            _swap(partial, target)
        else:
            partial.replace(target)


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """A place for ``target`` to be made in, on the same file system, under its own name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _disk_full_named(target):
        _clear(target.parent)
        shop, lock = _open_shop(target.parent)
    try:
        with _disk_full_named(target):
            yield shop / target.name
            if not _in_the_making(target):
                _flush(target.parent)
    finally:
        if lock:  # first, or a network file system keeps the open file, and so the folder
            lock.close()
        shutil.rmtree(shop, ignore_errors=True)


def _in_the_making(target: Path) -> bool:
    return any(part.startswith(_PARTIAL) for part in target.absolute().parts)


def _open_shop(parent: Path) -> tuple[Path, IO[str] | None]:
    """A new hidden folder, and the file whose lock says that it is in use."""
    while True:
        shop = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
        try:
            return shop, _lock(shop)
        except (BlockingIOError, FileNotFoundError):
            continue  # before it was locked, another process took it for one that was left behind
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return shop, None


def _lock(shop: Path) -> IO[str]:
    """Lock a hidden folder, for as long as the file that is returned stays open.

    Raises:
        BlockingIOError: it is in use.
        FileNotFoundError: it was removed meanwhile.
        OSError: the file system has no locks, or the folder is another user's.
    """
    path = shop / _LOCK
    stream = path.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except OSError:
        stream.close()
        raise
    return stream


def _clear(parent: Path) -> None:
    """Remove what killed processes left beside a target, and put back what they had set aside."""
    for shop in parent.glob(f"{_PARTIAL}*"):
        # In use, gone meanwhile, another user's, or without locks: left alone.
        with suppress(OSError), _lock(shop):
            old = shop / _OLD
            for made in {path.name for path in shop.iterdir()} - {_LOCK, _OLD}:
                if os.path.lexists(old) and not os.path.lexists(parent / made):
                    old.replace(parent / made)
            shutil.rmtree(shop, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """Put ``new`` where ``target`` is; what was there stays in the folder that ``new`` was made in."""
    try:
        _exchange(new, target)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        old = new.parent / _OLD
        target.replace(old)
        try:
            new.replace(target)
        except OSError:
            old.replace(target)
            raise


def _exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step, as renameat2(2) does.

    Raises:
        OSError: it failed; one of ``_NO_EXCHANGE`` where the system or the file system can't.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def _flush_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in names):
            if not path.is_symlink():
                _flush(path)
        _flush(Path(place))


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that doesn't do it
            raise
    finally:
        os.close(handle)


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


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


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
        SegdistillError: the file is missing, can't be read or isn't JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SegdistillError(f"{path}: no such file.") from error
    except OSError as error:
        raise SegdistillError(f"{path}: can't be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise SegdistillError(f"{path}: not valid JSON ({error}).") from error


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in ``folder``, sorted by name; none where there is no such folder."""
    return [path for path in visible(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []


def unfetched(path: Path) -> bool:
    """Whether this is a link to a file that isn't on this machine, as git-annex and DVC leave them."""
    return path.is_symlink() and not path.exists()
