"""Build the bento from exactly one registry version: all of its bytes checked, or nothing built."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill import telemetry
from segdistill.files import SegdistillError, json_bytes, read_json, sha256_of, write_json
from segdistill.registry.champion import Champion, fetch_bundle, resolve
from segdistill.registry.store import RegistryError
from serving.contract import BUNDLE, PROTOCOL, RECORD, TUNING, Served, bento_home

SERVING = Path(__file__).resolve().parents[1]
SOURCES = SERVING.parent / "platform" / "segdistill"
# What the service needs of the library and of the room 'serving', and no more.
LIBRARY = (
    *("__init__.py", "files.py", "overlap.py", "released.py", "shown.py", "telemetry.py", "texts.py"),
    *("volume", "runtime", "tuning", "dicom_results"),
)
SERVICE = ("__init__.py", "contract.py", "service")


@dataclass(frozen=True)
class Packaged:
    """What was built: the bento's exact tag, and the record of what it serves."""

    bento: str
    served: Served

    def to_json(self) -> dict[str, Any]:
        """The receipt as plain JSON values."""
        return {"bento": self.bento, **self.served.to_json()}


def package(
    root: Path, promoted: Champion, *, threads: int, max_body_mb: float, tuning: Path | None = None
) -> Packaged:
    """Build the bento of a promoted version.

    Args:
        root: the repository's root; the bento goes to its ``bentos`` folder, see
            :func:`serving.contract.bento_home`.
        promoted: the version, as the alias was resolved for the receipt.
        threads: CPU threads of the network; 0: as many as the process may use.
        max_body_mb: largest upload, MB.
        tuning: what stage ``tune`` wrote; None: the service runs the reference.

    Raises:
        RegistryError: the alias stands for another version than the receipt says, before or after the
            build, or the stored files were changed. Nothing of the build is left then.
        BundleError: a file of the bundle doesn't have its digest.
        SegdistillError: the tuning is of another version.
    """
    home = bento_home(root)
    os.environ["BENTOML_HOME"] = str(home)
    os.environ.update(telemetry.OFF)
    home.mkdir(parents=True, exist_ok=True)
    import bentoml

    _same(promoted, resolve(root, promoted.task, promoted.alias))
    if tuning is not None:
        _of_this_version(tuning, promoted)
    name = f"segdistill-{promoted.task.replace('_', '-')}"
    served = Served(
        task=promoted.task,
        alias=promoted.alias,
        version=promoted.version,
        name=promoted.name,
        bundle_digest=promoted.bundle_digest,
        model=f"{name}:{promoted.bundle_digest[:32]}",
        threads=threads,
        max_body_mb=max_body_mb,
    )
    with (
        tempfile.TemporaryDirectory(prefix="segdistill-package-") as scratch,
        contextlib.ExitStack() as undo,
    ):
        bundle = Path(scratch) / BUNDLE
        fetch_bundle(root, promoted, bundle)
        context = Path(scratch) / "context"
        write_context(context, served, tuning)
        version = _digest(context)[:16]

        _put_model(bentoml, served, bundle, undo)
        bento = _put_bento(bentoml, f"{name}:{version}", context, undo)
        _same(promoted, resolve(root, promoted.task, promoted.alias))
        undo.pop_all()
    return Packaged(bento, served)


def _same(promoted: Champion, now: Champion) -> None:
    if now.version != promoted.version:
        raise RegistryError(
            f"The {promoted.alias} moved from v{promoted.version} to v{now.version} while packaging. "
            "Nothing was packaged; run 'dvc repro' again."
        )
    if now.bundle_digest != promoted.bundle_digest:
        raise RegistryError(
            f"The {promoted.alias} v{now.version} has the digest {now.bundle_digest[:12]} now, the "
            f"receipt says {promoted.bundle_digest[:12]}. Run 'dvc repro' again."
        )


def _of_this_version(tuning: Path, promoted: Champion) -> None:
    body = read_json(tuning)
    if body.get("choice") is not None and body.get("bundle_digest") != promoted.bundle_digest:
        raise SegdistillError(
            f"{tuning}: of another version than v{promoted.version} {promoted.name}. "
            "Run 'dvc repro' again."
        )


def write_context(context: Path, served: Served, tuning: Path | None) -> None:
    """Copy the sources that go into the bento; nothing else of the repository can get in."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for room, names in ((SOURCES, LIBRARY), (SERVING, SERVICE)):
        for name in names:
            source, target = room / name, context / room.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=unwanted)
            else:
                shutil.copyfile(source, target)
    shutil.copyfile(SERVING / "requirements.txt", context / "requirements.txt")
    write_json(context / "serving" / RECORD, served.to_json())
    protocol = SOURCES / "sites" / "protocols" / f"{served.task}.yaml"
    if protocol.is_file():
        shutil.copyfile(protocol, context / "serving" / PROTOCOL)
    if tuning is not None:
        shutil.copyfile(tuning, context / "serving" / TUNING)
    requirements = (context / "requirements.txt").read_text().splitlines()
    write_json(
        context / "bentofile.yaml",
        {
            "service": "serving.service.app:Service",
            "name": served.model.partition(":")[0],
            "labels": {"task": served.task, "member": served.name, "version": str(served.version)},
            "include": ["segdistill/", "serving/", "requirements.txt"],
            "models": [served.model],
            "python": {
                "packages": [line for line in requirements if line and not line.startswith("#")],
                "lock_packages": False,
            },
        },
    )


def _digest(folder: Path) -> str:
    """SHA-256 over all files of a folder, names and bytes."""
    return hashlib.sha256(json_bytes(_files(folder))).hexdigest()


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _put_model(bentoml: Any, served: Served, bundle: Path, undo: contextlib.ExitStack) -> None:
    """Put the bundle into the model store, unless these very bytes are there."""
    with contextlib.suppress(bentoml.exceptions.NotFound):
        there = Path(bentoml.models.get(served.model).path) / BUNDLE
        if _files(there) == _files(bundle):
            return
        bentoml.models.delete(served.model)
    labels = {"task": served.task, "member": served.name, "version": str(served.version)}
    with bentoml.models.create(
        served.model, labels=labels, metadata={"bundle_digest": served.bundle_digest}
    ) as model:
        shutil.copytree(bundle, Path(model.path) / BUNDLE)
    undo.callback(bentoml.models.delete, served.model)


def _put_bento(bentoml: Any, tag: str, context: Path, undo: contextlib.ExitStack) -> str:
    """Build the bento, unless one of these very sources is there."""
    with contextlib.suppress(bentoml.exceptions.NotFound):
        there = _files(Path(bentoml.bentos.get(tag).path) / "src")
        if there == _files(context):
            return tag
        bentoml.bentos.delete(tag)
    undo.callback(_forget_bento, bentoml, tag)
    _build(context, tag)
    return tag


def _forget_bento(bentoml: Any, tag: str) -> None:
    with contextlib.suppress(bentoml.exceptions.NotFound):
        bentoml.bentos.delete(tag)


def _build(context: Path, tag: str) -> None:
    """Run ``bentoml build`` in a process of its own: it imports the context's modules, not ours."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bentoml", "build", "--version", tag.partition(":")[2]],
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SegdistillError(f"{tag}: 'bentoml build' failed:\n{done.stderr.strip()[-2000:]}")


def check_receipt(body: dict[str, Any], path: Path) -> Champion | None:
    """The promoted version of a ``champion.json``, or None when nobody has promoted.

    Raises:
        SegdistillError: it isn't such a receipt.
    """
    if body.get("version") is None:
        return None
    try:
        return Champion(**body)
    except TypeError as error:
        raise SegdistillError(f"{path}: not a champion's receipt. Run 'dvc repro champion'.") from error
