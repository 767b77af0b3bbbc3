"""An imported teacher in the pipeline: its network stands where a trained one would."""

import shutil
from dataclasses import replace
from pathlib import Path

from segdistill.files import atomic_folder, read_json
from segdistill.network.architecture import Architecture, NetworkKnobs
from segdistill.network.model import MODEL_JSON, WEIGHTS, Model, read_model
from segdistill.runtime.plan import Plan

TEACHER = "teacher"  # folder of the teacher's model in what 'segdistill import-nnunet' wrote


def ready_network(folder: Path, knobs: NetworkKnobs) -> NetworkKnobs:
    """The ``network`` knobs with the imported teacher's architecture, for students to be scaled from.

    Args:
        folder: what ``segdistill import-nnunet`` wrote.
        knobs: of params.yaml; ``min_channels`` is taken from them.
    """
    architecture = Architecture.from_json(read_json(folder / TEACHER / MODEL_JSON)["architecture"])
    return replace(
        knobs,
        stages=len(architecture.channels),
        channels=architecture.channels,
        stem_stride=architecture.stem_stride,
        norm=architecture.norm,
        deep_supervision=architecture.deep_supervision,
        strides=architecture.strides,
        kernels=architecture.kernels,
    )


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
