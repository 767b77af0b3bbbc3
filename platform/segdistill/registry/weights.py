"""The trained weights behind a registered version, which itself holds the network as ONNX alone."""

import tempfile
from pathlib import Path

from segdistill.files import read_json
from segdistill.network.model import MODEL_JSON
from segdistill.registry.champion import Champion, describe, fetch_bundle, objection
from segdistill.registry.promote import find_version
from segdistill.registry.register import DIGEST_TAG, NAME_TAG
from segdistill.registry.store import RegistryError, open_store
from segdistill.runtime.plan import Plan
from segdistill.shown import command


def trained_model(root: Path, task: str, which: str) -> tuple[Path, Plan]:
    """The model folder that a version was exported from, and the version's plan.

    Args:
        root: the repository's root.
        task: the task.
        which: a version number (``3`` or ``v3``), or a member's name for its newest version.

    Raises:
        RegistryError: no such version, or ``models/TASK/NAME`` isn't what it was exported from.
    """
    version = find_version(open_store(root), task, which)
    if DIGEST_TAG not in version.tags:
        raise RegistryError(f"{describe(version)} wasn't registered by 'dvc repro register'.")
    name = version.tags[NAME_TAG]
    sealed = Champion(task, "", int(version.version), name, version.tags[DIGEST_TAG], objection(version))
    with tempfile.TemporaryDirectory(prefix="segdistill-fetch-") as scratch:
        bundle = fetch_bundle(root, sealed, Path(scratch) / "bundle")
        wanted = bundle.provenance.get("weights_sha256")
        plan = bundle.plan
    folder = root / "models" / task / name
    card = folder / MODEL_JSON
    if wanted is None or not card.is_file() or read_json(card)["weights_sha256"] != wanted:
        commit = bundle.provenance.get("git_commit")
        back = (
            command("git", "checkout", str(commit).removesuffix("-dirty")),
            command("dvc", "checkout", f"models/{task}/{name}"),
        )
        remedy = " && ".join(back if commit else back[1:])
        raise RegistryError(
            f"{folder}: isn't the model that {describe(version)} was exported from; the registry keeps "
            f"its ONNX file alone. Give a model's folder, or bring the weights back: {remedy}"
        )
    return folder, plan
