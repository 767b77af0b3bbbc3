"""Register a bundle that came with the repository: sealed already, with figures in its provenance."""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdistill.family import Figures, figures_from
from segdistill.registry.lineage import Lineage, SiteData
from segdistill.registry.register import (
    BUNDLE_FOLDER,
    DIGEST_TAG,
    Registered,
    add_version,
    ensure_model,
    model_name,
)
from segdistill.registry.store import RegistryError, open_store, reaching
from segdistill.runtime.bundle import PROVENANCE, Bundle


def register_released(root: Path, task: str, folder: Path) -> Registered:
    """Register a released bundle as it is, unless these very bytes are registered.

    What is served of it later has the digest that it has in the repository.

    Args:
        root: the repository's root, with the store unless MLFLOW_TRACKING_URI names another.
        task: the task.
        folder: the bundle.

    Raises:
        BundleError: it isn't as it was sealed.
        RegistryError: of another task, or its provenance lacks figures or data.
    """
    sealed = Bundle.read(folder)
    if sealed.plan.task != task:
        raise RegistryError(f"{folder}: is of the task {sealed.plan.task}, not {task}. Add --task.")
    member, lineage = _known(folder / PROVENANCE, sealed.provenance)
    store = open_store(root)
    with reaching(store.uri):
        ensure_model(store, task)
        found = [
            version
            for version in store.client.search_model_versions(f"name = '{model_name(task)}'")
            if version.tags.get(DIGEST_TAG) == sealed.digest
        ]
    if found:
        return Registered(member.name, int(found[0].version), sealed.digest, new=False)
    evidence = hashlib.sha256(sealed.digest.encode()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="segdistill-released-") as scratch, reaching(store.uri):
        copy = Path(scratch) / BUNDLE_FOLDER
        shutil.copytree(folder, copy)
        version = add_version(store, task, member, Bundle.read(copy), evidence, lineage)
    return Registered(member.name, int(version.version), sealed.digest, new=True)


def _known(path: Path, provenance: Mapping[str, Any]) -> tuple[Figures, Lineage]:
    """The figures and the data that a provenance names."""
    try:
        member = figures_from(provenance["figures"], path)
        held_out, simulated = provenance["held_out"], bool(provenance["simulated"])
        sites = tuple(
            SiteData(Path(place).name, place, digest, simulated, place in held_out, "")
            for place, digest in sorted(provenance["data"].items())
        )
        return member, Lineage(sites, str(provenance["git_commit"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"{path}: lacks what the registry shows ({error!r}). A bundle to release is one that was "
            "registered: fetch the version's own, and seal that with its limits (docs/registry.md)."
        ) from error
