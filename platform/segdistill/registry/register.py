"""Register a family: one registered model per task, one version per member, all evidence beside it."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from segdistill.family import Figures, control_of, read_family
from segdistill.files import json_bytes, subfolders
from segdistill.registry.evidence import repeatable, shown, verdict_tags
from segdistill.registry.lineage import Lineage, read_lineage
from segdistill.registry.seal import CARD, seal_with_card, shortened
from segdistill.registry.store import (
    RegistryError,
    Store,
    absent,
    end_run,
    log_data,
    log_metrics,
    open_store,
    reaching,
    start_run,
)
from segdistill.runtime.bundle import Bundle

# The bundle lies in a folder of its own in the version's files: MLflow adds files beside it.
BUNDLE_FOLDER = "bundle"
DIGEST_TAG = "bundle_digest"
EVIDENCE_TAG = "evidence_digest"
NAME_TAG = "name"
ROLE_TAG = "role"
NON_INFERIOR_TAG = "non_inferior"


@dataclass(frozen=True)
class Registered:
    """A version of the registry.

    Attributes:
        name: the family member it is.
        version: its number.
        bundle_digest: digest of its sealed bundle.
        new: whether this call made it.
    """

    name: str
    version: int
    bundle_digest: str
    new: bool


def model_name(task: str) -> str:
    """The registered model of a task."""
    return f"segdistill-{task}"


def register_family(root: Path, task: str) -> list[Registered]:
    """Register every bundle of a task that isn't registered yet; nothing that is there is changed.

    Args:
        root: the repository's root, with ``bundles/TASK``, ``reports/TASK/family.json``, the sites
            under DVC, and the store unless MLFLOW_TRACKING_URI names another.
        task: e.g. ``brain_mri``.

    Returns:
        The version of every member, in the family's order.

    Raises:
        RegistryError: no bundle, a bundle without a row in the family, or the store can't be reached.
    """
    folder = root / "bundles" / task
    found = {path.name: path for path in subfolders(folder)}
    if not found:
        raise RegistryError(f"{folder}: no bundle here. Run 'dvc repro' first.")
    family = read_family(root / "reports" / task / "family.json")
    unknown = sorted(set(found) - {member.name for member in family})
    if unknown:
        raise RegistryError(
            f"{folder}: no figures for {', '.join(unknown)} in reports/{task}/family.json. "
            "Run 'dvc repro evaluate', or remove what no longer belongs to the family."
        )
    lineage = read_lineage(root, task)
    store = open_store(root)
    with reaching(store.uri):
        ensure_model(store, task)
        known = {
            version.tags[EVIDENCE_TAG]: version
            for version in store.client.search_model_versions(f"name = '{model_name(task)}'")
            if EVIDENCE_TAG in version.tags and DIGEST_TAG in version.tags
        }
    teachers = [member for member in family if member.role == "teacher" and member.name in found]
    done = []
    with tempfile.TemporaryDirectory(prefix="segdistill-seal-") as scratch:
        for member in family:
            if member.name not in found:
                continue
            source = Bundle.read(found[member.name])
            control = control_of(member, family)
            teacher = _teacher_of(member, teachers, found)
            evidence = _evidence(source, member, control, teacher, lineage)
            version = known.get(evidence)
            new = version is None
            if version is None:
                target = Path(scratch) / member.name / BUNDLE_FOLDER
                sealed = seal_with_card(
                    source, target, member, control=control, teacher=teacher, lineage=lineage
                )
                with reaching(store.uri):
                    version = add_version(store, task, member, sealed, evidence, lineage)
            digest = version.tags[DIGEST_TAG]
            done.append(Registered(member.name, int(version.version), digest, new))
    return done


def _evidence(
    source: Bundle,
    member: Figures,
    control: Figures | None,
    teacher: Mapping[str, str],
    lineage: Lineage,
) -> str:
    """Digest of what makes a version another one: its bytes, what they come from, how good they are.

    Not the wording of the card, and not the timings: measured again, they are never quite the same.
    """
    body = {
        "bundle": source.digest,
        "figures": [repeatable(member), repeatable(control) if control else None],
        "verdicts": verdict_tags(member),
        "teacher": dict(teacher),
        "data": lineage.hashes,
    }
    return hashlib.sha256(json_bytes(body)).hexdigest()


def _teacher_of(member: Figures, teachers: list[Figures], found: Mapping[str, Path]) -> dict[str, str]:
    if member.role != "student" or not teachers:
        return {}
    name = teachers[0].name
    return {"name": name, "bundle_digest": Bundle.read(found[name]).digest}


def ensure_model(store: Store, task: str) -> None:
    """Make the registered model of a task, unless it is there."""
    try:
        store.client.get_registered_model(model_name(task))
    except MlflowException as error:
        if not absent(error):
            raise
        store.client.create_registered_model(
            model_name(task),
            tags={"task": task},
            description=(
                f"The family of {task}: teacher, students and their controls. Set the alias "
                "`champion` on the version to serve. Research use, not a medical device."
            ),
        )


def add_version(
    store: Store, task: str, member: Figures, sealed: Bundle, evidence: str, lineage: Lineage
) -> ModelVersion:
    """Log the sealed bundle with a run of its own, then add the version: the last step, so that a
    failure before it leaves no version.
    """  # noqa: D205
    provenance = sealed.provenance
    identity = {
        "role": member.role,
        "width": member.width,
        "parameters": member.parameters,
        "macs": member.macs,
        "data_digest": lineage.data_digest,
        "code_digest": lineage.code,
        "plan_digest": provenance["plan_sha256"],
        DIGEST_TAG: sealed.digest,
        EVIDENCE_TAG: evidence,
        "simulated": str(lineage.simulated).lower(),
    }
    run_id = start_run(
        store, member.name, params=identity, tags={"segdistill.kind": "registration", "task": task}
    )
    try:
        log_data(store, run_id, _inputs(lineage))
        model = store.client.create_logged_model(
            store.experiment_id,
            name=member.name,
            source_run_id=run_id,
            params={key: str(value) for key, value in identity.items()},
            tags={"task": task},
            model_type="onnx segmentator",
        )
        _describe(sealed, model.model_id)
        store.client.log_model_artifacts(model.model_id, str(sealed.folder.parent))
        store.client.finalize_logged_model(model.model_id, "READY")
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        log_metrics(store, run_id, shown(member), model_id=model.model_id)
        end_run(store, run_id)
    except BaseException:
        end_run(store, run_id, "FAILED")
        raise
    # The UI's list shows tags in this order: what a person compares, before the digests.
    tags = {NAME_TAG: member.name, "role": member.role, "width": member.width}
    tags |= {name: f"{value:.4f}" for name, value in shown(member).items()}
    tags |= verdict_tags(member)
    if member.verdict is not None and member.verdict.beats_control is False:
        tags["warning"] = "distillation shows no gain over the control"
    tags |= identity
    version = store.client.create_model_version(
        model_name(task),
        source=f"models:/{model.model_id}",
        run_id=run_id,
        model_id=model.model_id,
        tags={key: str(value) for key, value in tags.items()},
        description=shortened((sealed.folder / CARD).read_text()),
    )
    # A server notes this itself; so the model's page leads to the version either way.
    backlink = json.dumps([{"name": version.name, "version": str(version.version)}])
    store.client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: backlink})
    return version


def _inputs(lineage: Lineage) -> dict[str, tuple[str, str, str]]:
    return {
        site.site: (site.path, site.digest, "testing" if site.held_out else "training, testing")
        for site in lineage.sites
    }


def _describe(sealed: Bundle, model_id: str) -> None:
    """Write MLflow's own description beside the bundle, so that the UI shows inputs and outputs."""
    channels = sealed.plan.channels_out
    kind = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, 1, -1, -1, -1), "scan")]),
        outputs=Schema([TensorSpec(kind, (-1, channels, -1, -1, -1), "logits")]),
    )
    description: Any = Model(model_id=model_id, signature=signature)
    description.add_flavor(
        "onnx",
        onnx_version=onnx.__version__,
        data=f"{BUNDLE_FOLDER}/model.onnx",
        providers=["CPUExecutionProvider"],
    )
    description.save(os.fspath(sealed.folder.parent / "MLmodel"))
