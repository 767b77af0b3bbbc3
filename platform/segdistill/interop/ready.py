"""An imported teacher in the pipeline: its plan and network stand where trained ones would."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, atomic_folder, read_json
from segdistill.interop.importing import TEACHER
from segdistill.network.architecture import Architecture
from segdistill.network.model import MODEL_JSON, WEIGHTS, Model, read_model
from segdistill.runtime.bundle import PLAN
from segdistill.runtime.plan import Plan
from segdistill.shown import command
from segdistill.sites.manifest import Site


def ready_plan(folder: Path, sites: Sequence[Site], task: str) -> Plan:
    """The plan of an imported teacher, for sites whose labels mean what its outputs mean.

    Args:
        folder: what ``segdistill import-nnunet`` wrote.
        sites: all sites of the task.
        task: the task's name.

    Raises:
        SegdistillError: no such folder; or the plan is of another task or label protocol, or has other
            structures.
    """
    if not (folder / PLAN).is_file():
        raise SegdistillError(
            f"{folder}: no imported teacher, though teacher.ready in params.yaml names it. Set that to "
            f"null, or make it: {command('segdistill', 'import-nnunet', 'RESULTS', '--out', folder)}"
        )
    plan = Plan.read(folder / PLAN)
    ours = {entry.code: entry.name for entry in plan.structures}
    wrong = None
    if plan.task != task:
        wrong = f"is of the task {plan.task}, not {task}. Import again with {command('--task', task)}"
    for site in sites:
        if plan.label_protocol != site.label_protocol:
            wrong = wrong or (
                f"follows the label protocol {plan.label_protocol}, site {site.site} follows "
                f"{site.label_protocol}. If they are the same, import again with "
                f"{command('--label-protocol', site.label_protocol)}"
            )
        if ours != site.structures:
            wrong = wrong or (
                f"has the structures {ours}, site {site.site} has {site.structures}. If only names "
                "differ, rename the labels in the results folder's dataset.json and import again"
            )
    if wrong:
        raise SegdistillError(f"{folder / PLAN}: {wrong}.")
    return plan


def ready_network(folder: Path, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The ``network`` knobs with the imported teacher's architecture, for students to be scaled from.

    Args:
        folder: what ``segdistill import-nnunet`` wrote.
        knobs: the ``network`` part of params.yaml; ``min_channels`` is taken from it.
    """
    architecture = Architecture.from_json(read_json(folder / TEACHER / MODEL_JSON)["architecture"])
    return {
        **knobs,
        "stages": len(architecture.channels),
        "channels": list(architecture.channels),
        "stem_stride": architecture.stem_stride,
        "norm": architecture.norm,
        "deep_supervision": architecture.deep_supervision,
        "strides": [list(stride) for stride in architecture.strides],
        "kernels": [list(kernel) for kernel in architecture.kernels],
    }


def take_teacher(folder: Path, plan: Plan, out: Path) -> Model:
    """Copy an imported teacher to ``out``, verified; returns it.

    Raises:
        SegdistillError: a file is missing or altered, or it belongs to another plan.
    """
    model = read_model(folder / TEACHER, plan)
    with atomic_folder(out) as partial:
        for name in (WEIGHTS, MODEL_JSON):
            shutil.copyfile(folder / TEACHER / name, partial / name)
    return model
