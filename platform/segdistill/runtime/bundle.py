"""The bundle: the folder that is registered, promoted and served, sealed by digests.

The seal protects bytes. Where they lie is the user's matter: with a shared DVC cache, every file of a
bundle is a link into that cache, and a link to other bytes has another digest. So links are followed. A
name in ``provenance.json`` is another thing: it comes with the bundle, and may name only a file right
inside its folder. Copies (:func:`write_bundle`, :func:`seal`, the registry, the bento) are plain files.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, atomic_folder, json_bytes, read_json, sha256_of
from segdistill.runtime.plan import PLAN, Plan

MODEL = "model.onnx"
INT8 = "model.int8.onnx"
PROVENANCE = "provenance.json"
FORMAT = 1

_AGAIN = "Fetch the bundle from the registry again."
_SEALED = ("format", "files", "plan_sha256")  # set by the seal, whatever was given


class BundleError(SegdistillError):
    """A bundle that isn't what was sealed; the message names the file and what to do."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte was verified.

    Attributes:
        folder: where it lies.
        plan: its plan.
        provenance: its ``provenance.json``: task, name, role, width, parameters, macs, git commit,
            digests of all files.
    """

    folder: Path
    plan: Plan
    provenance: dict[str, Any]

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL

    @property
    def int8(self) -> Path | None:
        """The ONNX file of the quantised network; None where the bundle has none."""
        return self.folder / INT8 if INT8 in self.provenance["files"] else None

    @property
    def digest(self) -> str:
        """SHA-256 of ``provenance.json``, which covers all other files."""
        return digest(self.folder)

    @classmethod
    def read(cls, folder: Path) -> "Bundle":
        """Read a bundle and verify every file of it.

        Raises:
            BundleError: a file is missing, changed or unlisted, a listed name leads out of the
                folder, or ``provenance.json`` isn't one.
        """
        seal_path = folder / PROVENANCE
        if not seal_path.is_file():
            raise BundleError(f"{seal_path}: no such file, so {folder} is no bundle. {_AGAIN}")
        provenance = read_json(seal_path)
        files = provenance.get("files") if isinstance(provenance, dict) else None
        if not isinstance(files, dict) or provenance.get("format") != FORMAT:
            raise BundleError(f"{seal_path}: not the seal of a bundle of format {FORMAT}. {_AGAIN}")
        for name in (MODEL, PLAN):
            if name not in files:
                raise BundleError(f"{seal_path}: doesn't list {name}. {_AGAIN}")
        for name, expected in files.items():
            _check_name(name, seal_path)
            path = folder / name
            if not path.is_file():
                raise BundleError(f"{path}: no such file, or a link to none. {_AGAIN}")
            if sha256_of(path) != expected:
                raise BundleError(f"{path}: its digest isn't the sealed one, it was changed. {_AGAIN}")
        for path in sorted(folder.iterdir()):
            if path.name not in files and path.name != PROVENANCE:
                raise BundleError(f"{path}: not listed in {PROVENANCE}, it was added. {_AGAIN}")
        plan = Plan.read(folder / PLAN)
        if plan.digest() != provenance.get("plan_sha256"):
            raise BundleError(f"{folder / PLAN}: isn't the plan that was sealed. {_AGAIN}")
        return cls(folder, plan, provenance)


def digest(folder: Path) -> str:
    """SHA-256 of the bundle's ``provenance.json``, as 64 hexadecimal digits; names the bundle."""
    path = folder / PROVENANCE
    if not path.is_file():
        raise BundleError(f"{path}: no such file, so {folder} is no bundle. {_AGAIN}")
    return sha256_of(path)


def write_bundle(
    folder: Path, onnx: Path, plan: Plan, provenance: Mapping[str, Any], int8: Path | None = None
) -> Bundle:
    """Seal a network and its plan into a bundle; the folder is whole or absent.

    Args:
        folder: the new bundle; an older one there is replaced.
        onnx: the network, see :class:`~segdistill.runtime.backend.OnnxBackend`.
        plan: the family's plan.
        provenance: what is known of the network (task, name, role, width, parameters, macs, ...);
            plain JSON values.
        int8: the same network quantised, or None.

    Returns:
        The bundle as read back and verified.

    Raises:
        BundleError: ``provenance`` has the ``plan_sha256`` of another plan.
    """
    with atomic_folder(folder) as partial:
        shutil.copyfile(onnx, partial / MODEL)
        if int8 is not None:
            shutil.copyfile(int8, partial / INT8)
        plan.write(partial / PLAN)
        _write_seal(partial, plan, provenance)
    return Bundle.read(folder)


def seal(
    source: Path,
    target: Path,
    extra_files: Mapping[str, bytes],
    provenance: Mapping[str, Any],
) -> Bundle:
    """Copy a bundle with more files and more provenance, and seal it anew.

    Args:
        source: a bundle; stays as it is.
        target: the new bundle; an older one there is replaced.
        extra_files: name to bytes, e.g. ``{"card.md": ...}``; may replace earlier extra files but
            not the network, the plan or the provenance.
        provenance: fields to add or replace.

    Returns:
        The new bundle as read back and verified.

    Raises:
        BundleError: ``source`` isn't as sealed, a name isn't a plain file name or belongs to the
            bundle's own files, or ``provenance`` has the ``plan_sha256`` of another plan.
    """
    bundle = Bundle.read(source)
    for name in extra_files:
        _check_name(name, target)
        if name in (MODEL, INT8, PLAN):
            raise BundleError(f"{target}: {name} can't be replaced in a sealed bundle. Export it again.")
    known = {key: value for key, value in bundle.provenance.items() if key not in _SEALED}
    with atomic_folder(target) as partial:
        for name in bundle.provenance["files"]:
            shutil.copyfile(source / name, partial / name)
        for name, body in extra_files.items():
            (partial / name).write_bytes(body)
        _write_seal(partial, bundle.plan, {**known, **provenance})
    return Bundle.read(target)


def _write_seal(folder: Path, plan: Plan, provenance: Mapping[str, Any]) -> None:
    claimed = provenance.get("plan_sha256", plan.digest())
    if claimed != plan.digest():
        raise BundleError(
            f"the network is of the plan {claimed}, not of {plan.digest()}. Export it with its plan."
        )
    body = {
        **provenance,
        "format": FORMAT,
        "plan_sha256": plan.digest(),
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / PROVENANCE).write_bytes(json_bytes(body))


def _check_name(name: str, where: Path) -> None:
    """Raise BundleError unless ``name`` is a plain file name: no folders, no dots at the front."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == PROVENANCE:
        raise BundleError(f"{where}: {name!r} isn't the name of a file in a bundle. {_AGAIN}")
