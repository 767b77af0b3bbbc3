"""Resolve an alias to the one version it stands for, and fetch exactly that version's bundle."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from segdistill.files import atomic_folder
from segdistill.registry.register import (
    BUNDLE_FOLDER,
    DIGEST_TAG,
    NAME_TAG,
    NON_INFERIOR_TAG,
    ROLE_TAG,
    model_name,
)
from segdistill.registry.store import RegistryError, Store, absent, brief, open_store, reaching
from segdistill.runtime.bundle import Bundle
from segdistill.shown import command


@dataclass(frozen=True)
class Champion:
    """The version an alias stands for.

    Attributes:
        task: the task.
        alias: the alias that was resolved.
        version: the version's number.
        name: the family member it is, e.g. ``student-x4``.
        bundle_digest: digest of its sealed bundle, from the version's tag.
        objection: why it should not be served, see :func:`objection`; MLflow's UI lets it pass.
    """

    task: str
    alias: str
    version: int
    name: str
    bundle_digest: str
    objection: str


def registered_model(store: Store, task: str) -> RegisteredModel:
    """The registered model of a task.

    Raises:
        RegistryError: nothing is registered for this task, or the store can't be reached.
    """
    with reaching(store.uri):
        try:
            return store.client.get_registered_model(model_name(task))
        except MlflowException as error:
            if not absent(error):
                raise
            raise RegistryError(
                f"{store.uri}: nothing is registered for {task}. Check the task's name, or run its "
                "stage first, as 'dvc repro register'."
            ) from error


def check_alias(alias: str) -> None:
    """Refuse an alias that MLflow would refuse, by its own rules.

    Raises:
        RegistryError: empty, reserved (``latest``, ``v3``), too long, or with characters other than
            letters, digits, ``_`` and ``-``.
    """
    try:
        # MLflow's own pattern lets a line's end through at the end.
        validation._validate_model_alias_name(alias.replace("\n", " "))
        validation._validate_model_alias_name_reserved(alias)
    except MlflowException as error:
        raise RegistryError(
            f"alias {alias[:40]!r} isn't possible ({brief(error).rstrip('.')}). "
            "Take another one, such as champion or candidate."
        ) from error


def aliases(root: Path, task: str) -> dict[str, int]:
    """Every alias of a task's registered model, with the version it stands for.

    Raises:
        RegistryError: nothing is registered for this task, or the store can't be reached.
    """
    model = registered_model(open_store(root), task)
    return {alias: int(version) for alias, version in sorted(model.aliases.items())}


def resolve(root: Path, task: str, alias: str) -> Champion:
    """The version that ``alias`` stands for right now.

    Raises:
        RegistryError: nothing is registered, there is no such alias, the version isn't a bundle, or the
            store can't be reached.
    """
    check_alias(alias)
    store = open_store(root)
    there = aliases(root, task)
    if alias not in there:
        listed = ", ".join(f"{name} (v{version})" for name, version in there.items()) or "none"
        raise RegistryError(
            f"{model_name(task)} has no alias {alias!r}; aliases there are: {listed}. "
            "Set it in the MLflow UI, or: "
            f"segdistill promote VERSION --reason ... {command('--alias', alias)}"
        )
    with reaching(store.uri):
        version = store.client.get_model_version(model_name(task), str(there[alias]))
    missing = [tag for tag in (DIGEST_TAG, NAME_TAG) if tag not in version.tags]
    if missing:
        raise RegistryError(
            f"{model_name(task)} v{version.version} has no tag {', '.join(missing)}: it wasn't "
            f"registered by 'dvc repro register'. Set the alias {alias!r} on a version that was."
        )
    return Champion(
        task,
        alias,
        int(version.version),
        version.tags[NAME_TAG],
        version.tags[DIGEST_TAG],
        objection(version),
    )


def fetch_bundle(root: Path, champion: Champion, target: Path) -> Bundle:
    """Copy the champion's sealed bundle to ``target`` and check every digest of it.

    Raises:
        RegistryError: its files can't be read, or are not those that were registered.
        BundleError: a file of the bundle doesn't have the digest its provenance states.
    """
    store = open_store(root)
    what = f"{model_name(champion.task)} v{champion.version}"
    with reaching(store.uri):
        uri = store.client.get_model_version_download_uri(
            model_name(champion.task), str(champion.version)
        )
    with tempfile.TemporaryDirectory(prefix="segdistill-fetch-") as scratch:
        try:
            # With a folder to put them in, even a file:// store gives copies, never its own files.
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{uri.rstrip('/')}/{BUNDLE_FOLDER}", dst_path=scratch
            )
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"{what}: its files can't be read from {uri} ({brief(error)}). If the store is out of "
                "reach, try again. If they were deleted or moved, restore them, or register the family "
                "again into a new store."
            ) from error
        with atomic_folder(target) as folder:
            for path in sorted(Path(local).rglob("*")):
                if path.is_file():
                    copy = folder / path.relative_to(local)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())
            found = Bundle.read(folder).digest
            if found != champion.bundle_digest:
                raise RegistryError(
                    f"{what}: the bundle's digest is {found[:12]}, the version's tag says "
                    f"{champion.bundle_digest[:12]}. The stored files were changed: don't serve them; "
                    "restore them, or promote another version."
                )
    return Bundle.read(target)


def describe(version: ModelVersion) -> str:
    """A version in a few words: ``v3 student-x4``."""
    return f"v{version.version} {version.tags.get(NAME_TAG, '(not a bundle)')}"


def objection(version: ModelVersion) -> str:
    """Why a version should not be served, to follow its name; empty if nothing is against it."""
    role = version.tags.get(ROLE_TAG)
    if role == "control":
        return "is a control, made only to show what distillation adds. Promote the student beside it."
    if role == "student" and version.tags.get(NON_INFERIOR_TAG) != "yes":
        return (
            "is not shown to be non-inferior to its teacher (evaluation.margin in params.yaml; the "
            "report has the interval). Promote a wider one, or train it longer."
        )
    return ""
