"""Promote a version: set the alias as the MLflow UI does, and note who, when and why."""

import getpass
import json
import os
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from segdistill.registry.champion import check_alias, describe, objection, registered_model
from segdistill.registry.register import DIGEST_TAG, NAME_TAG, model_name
from segdistill.registry.store import RegistryError, Store, open_store, reaching

PROMOTION_TAG = "promotion."
_NOTE = 5000  # characters of a note, the least that MLflow's databases take for a tag


@dataclass(frozen=True)
class Promotion:
    """An entry of the promotion log, kept as a tag on the version.

    The log of a task is the notes on all its versions, in their ``order``. Two promotions at the same
    moment may have the same number.

    Attributes:
        alias: the alias that was set.
        at: UTC time, ISO 8601.
        by: who did it.
        name: the family member that was promoted.
        overridden: what spoke against it and was overridden; empty if nothing did.
        previous: version the alias stood for when the promotion began, or None.
        reason: why.
        version: version it stands for now.
        number: place in the task's log, from 1; 0 in notes from before there were numbers.
    """

    alias: str
    at: str
    by: str
    name: str
    overridden: str
    previous: int | None
    reason: str
    version: int
    number: int = 0

    @property
    def order(self) -> tuple[int, str, int]:
        """What the log is sorted by."""
        return self.number, self.at, self.version


def promotions(root: Path, task: str) -> list[Promotion]:
    """The promotion log of a task, oldest first.

    Raises:
        RegistryError: the store can't be reached, or a note isn't one.
    """
    return _log(open_store(root), task)


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
        RegistryError: no reason or too long a one, an alias that MLflow doesn't allow, no such version,
            not a bundle, an objection without ``override``, or the store can't be reached.
    """
    check_alias(alias)
    reason = " ".join(reason.split())
    if not reason:
        raise RegistryError("A promotion needs a reason: add --reason 'why this version'.")
    by = " ".join((by or "").split()) or _user()
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
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        by=by,
        name=version.tags[NAME_TAG],
        overridden=against,
        previous=int(previous) if previous is not None else None,
        reason=reason,
        version=int(version.version),
        number=_next_number(_log(store, task)),
    )
    _write(store, task, entry)
    return entry


def _write(store: Store, task: str, entry: Promotion) -> None:
    """Note a promotion, then let the alias follow the log.

    No two notes share a tag, so none can replace another. All who promote at the same moment move the
    alias to the last note there is and look again afterwards. Whoever moves it last has then seen every
    note, so the alias stands for the last of them.
    """
    name = model_name(task)
    note = json.dumps(asdict(entry), sort_keys=True)
    if len(note) > _NOTE:
        raise RegistryError(
            f"The promotion's note would have {len(note)} characters, and a note may have {_NOTE}. "
            "Shorten --reason or --by."
        )
    tag = f"{PROMOTION_TAG}{entry.number:06d}.{uuid.uuid4().hex[:8]}"
    with reaching(store.uri):
        # The note comes first: an alias that moved without one could not be explained later.
        store.client.set_model_version_tag(name, str(entry.version), tag, note)
        stands_for, last = None, entry
        while stands_for != last.version:
            _set_alias(store, name, entry.alias, last.version)
            stands_for = last.version
            others = [other for other in _log(store, task) if other.alias == entry.alias]
            last = max([entry, *others], key=lambda one: one.order)


def _set_alias(store: Store, name: str, alias: str, version: int) -> None:
    try:
        store.client.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        # MLflow looks for the alias, then inserts it: of two who set a new alias at once, its database
        # refuses one. By then the alias is there, and can be set.
        if error.error_code != "BAD_REQUEST":
            raise
        store.client.set_registered_model_alias(name, alias, str(version))


def _next_number(log: list[Promotion]) -> int:
    return max([len(log), *(entry.number for entry in log)]) + 1


def _log(store: Store, task: str) -> list[Promotion]:
    with reaching(store.uri):
        versions = store.client.search_model_versions(f"name = '{model_name(task)}'")
    found = []
    for version in versions:
        for tag, note in version.tags.items():
            if not tag.startswith(PROMOTION_TAG):
                continue
            try:
                found.append(Promotion(**json.loads(note)))
            except (TypeError, ValueError) as error:
                raise RegistryError(
                    f"{describe(version)}: its tag {tag} is no promotion's note ({error}); somebody "
                    "changed it. Mend or delete the tag in the MLflow UI."
                ) from error
    return sorted(found, key=lambda one: one.order)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container often runs under a number without a name.
        return f"uid {os.getuid()}"


def find_version(store: Store, task: str, which: str) -> ModelVersion:
    """A version by its number (``3`` or ``v3``), or the newest of a member's name.

    Raises:
        RegistryError: nothing is registered, there is no such version, or the store can't be reached.
    """
    registered_model(store, task)
    with reaching(store.uri):
        versions = sorted(
            store.client.search_model_versions(f"name = '{model_name(task)}'"),
            key=lambda version: int(version.version),
        )
    number = which.removeprefix("v")
    if number.isdecimal():
        hits = [version for version in versions if int(version.version) == int(number)]
    else:
        hits = [version for version in versions if version.tags.get(NAME_TAG) == which]
    if not hits:
        there = ", ".join(describe(version) for version in versions) or "none"
        raise RegistryError(f"{model_name(task)} has no version {which!r}. There are: {there}.")
    return hits[-1]
