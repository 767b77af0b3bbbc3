"""Promote a version: set the alias as the MLflow UI does, and note who, when and why."""

import getpass
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from segdistill.registry.champion import describe, objection, registered_model
from segdistill.registry.register import DIGEST_TAG, NAME_TAG, model_name
from segdistill.registry.store import RegistryError, Store, open_store

PROMOTION_TAG = "promotion."


@dataclass(frozen=True)
class Promotion:
    """An entry of the promotion log, kept as a tag on the version.

    Attributes:
        alias: the alias that was set.
        at: UTC time, ISO 8601.
        by: who did it.
        name: the family member that was promoted.
        overridden: what spoke against it and was overridden; empty if nothing did.
        previous: version the alias stood for before, or None.
        reason: why.
        version: version it stands for now.
    """

    alias: str
    at: str
    by: str
    name: str
    overridden: str
    previous: int | None
    reason: str
    version: int


def promote(
    root: Path,
    task: str,
    which: str,
    *,
    reason: str,
    alias: str = "champion",
    by: str | None = None,
    override: bool = False,
) -> Promotion:
    """Let ``alias`` stand for a version.

    Args:
        root: the repository's root.
        task: the task.
        which: a version number (``3`` or ``v3``), or a member's name (``student-x4``) for its newest.
        reason: why; goes to the promotion log.
        alias: the alias to set.
        by: who promotes; the operating system's user by default.
        override: also promote what :func:`~segdistill.registry.champion.objection` is against; the
            log says so.

    Raises:
        RegistryError: no reason, no such version, not a bundle, or an objection without ``override``.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise RegistryError("A promotion needs a reason: add --reason 'why this version'.")
    by = (by or _user()).strip()
    store = open_store(root)
    version = find_version(store, task, which)
    if DIGEST_TAG not in version.tags:
        raise RegistryError(
            f"{describe(version)} wasn't registered by 'dvc repro register' and can't be served."
        )
    against = objection(version)
    if against and not override:
        raise RegistryError(
            f"{describe(version)} {against} Add --override if you mean it; the log will say so."
        )
    model = registered_model(store, task)
    previous = model.aliases.get(alias)
    entry = Promotion(
        alias=alias,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=by,
        name=version.tags[NAME_TAG],
        overridden=against,
        previous=int(previous) if previous is not None else None,
        reason=reason,
        version=int(version.version),
    )
    count = sum(tag.startswith(PROMOTION_TAG) for tag in version.tags)
    tag = f"{PROMOTION_TAG}{count + 1:03d}"
    name, number = model_name(task), str(version.version)
    # The note comes first: an alias that moved without one could not be explained later.
    store.client.set_model_version_tag(name, number, tag, json.dumps(asdict(entry), sort_keys=True))
    try:
        store.client.set_registered_model_alias(name, alias, number)
    except BaseException:
        store.client.delete_model_version_tag(name, number, tag)
        raise
    return entry


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container often runs under a number without a name.
        return f"uid {os.getuid()}"


def find_version(store: Store, task: str, which: str) -> ModelVersion:
    """A version by its number (``3`` or ``v3``), or the newest of a member's name.

    Raises:
        RegistryError: nothing is registered, or there is no such version.
    """
    registered_model(store, task)
    versions = sorted(
        store.client.search_model_versions(f"name = '{model_name(task)}'"),
        key=lambda version: int(version.version),
    )
    number = which.removeprefix("v")
    if number.isdigit():
        hits = [version for version in versions if int(version.version) == int(number)]
    else:
        hits = [version for version in versions if version.tags.get(NAME_TAG) == which]
    if not hits:
        there = ", ".join(describe(version) for version in versions) or "none"
        raise RegistryError(f"{model_name(task)} has no version {which!r}. There are: {there}.")
    return hits[-1]
