"""From an nnU-Net v2 results folder to a teacher of this platform."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdistill.files import SegdistillError, read_json, sha256_of
from segdistill.interop.names import take_over
from segdistill.interop.plans import understand
from segdistill.interop.ready import TEACHER
from segdistill.network.model import write_model
from segdistill.network.unet import UNet
from segdistill.runtime.plan import PLAN, Plan

# nnU-Net logs NumPy numbers into its checkpoints. Beside what torch itself allows, these build numbers
# and arrays and run nothing. NumPy 1 kept the two functions under another name.
_BUILDERS = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
_NUMPY: list[Any] = [
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in _BUILDERS.items()
    ),
]


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        plan: path of the plan.
        teacher: folder of the model.
        parameters: learned parameters that inference uses.
        network: one line about the network.
    """

    plan: Path
    teacher: Path
    parameters: int
    network: str


def import_nnunet(
    results: Path,
    out: Path,
    *,
    fold: str = "0",
    checkpoint: str = "checkpoint_final.pth",
    task: str | None = None,
    label_protocol: str | None = None,
    orientation: str | None = None,
) -> Imported:
    """Make ``out/plan.json`` and ``out/teacher/`` from a trained nnU-Net v2 model.

    Args:
        results: the folder with plans.json, dataset.json and fold_X/.
        out: the new folder, laid out as ``models/TASK``.
        fold: a number, or ``all``.
        checkpoint: name of the checkpoint in the fold's folder.
        task: see :func:`~segdistill.interop.plans.understand`.
        label_protocol: see there.
        orientation: see there.

    Raises:
        SegdistillError: the model can't be expressed exactly, a file is missing or holds code, or there
            is a model at ``out`` already.
    """
    for there in (out / PLAN, out / TEACHER):
        if there.exists():
            raise SegdistillError(f"{there}: exists. Name another folder, or remove it first.")
    plans, dataset = (read_json(results / name) for name in ("plans.json", "dataset.json"))
    path = results / f"fold_{fold}" / checkpoint
    state = read_checkpoint(path)
    configuration = str(state["init_args"]["configuration"])
    understood = understand(
        plans,
        dataset,
        configuration,
        results,
        task=task,
        label_protocol=label_protocol,
        orientation=orientation,
    )
    network = UNet(understood.architecture)
    wrong = take_over(network, _bare(state["network_weights"]), understood.axes)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SegdistillError(
            f"{path}: {', '.join(wrong[:3])}{more} don't fit the network that plans.json describes. "
            f"Trainer {state.get('trainer_name')} may have built another one; that can't be imported."
        )
    write_model(
        out / TEACHER,
        network,
        understood.plan,
        name=TEACHER,
        role="teacher",
        width=1.0,
        training={
            "imported_from": "nnU-Net v2",
            "dataset": plans.get("dataset_name"),
            "configuration": configuration,
            "trainer": state.get("trainer_name"),
            "fold": fold,
            "checkpoint": checkpoint,
            "checkpoint_sha256": sha256_of(path),
            "plans_sha256": sha256_of(results / "plans.json"),
            "epochs": int(state.get("current_epoch") or 0),
        },
    )
    understood.plan.write(out / PLAN)
    return _summary(out, understood.plan)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's values: tensors, numbers, text and containers of them. No code is run.

    Raises:
        SegdistillError: missing, not a checkpoint of nnU-Net v2, or one that holds anything else.
    """
    if not path.is_file():
        raise SegdistillError(
            f"{path}: no such file. Give the folder with plans.json, and --fold and --checkpoint that "
            "are there."
        )
    try:
        with torch.serialization.safe_globals(_NUMPY):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SegdistillError(
            f"{path}: can't be read as tensors and numbers alone ({first}). A checkpoint that holds "
            "code isn't opened here: load it where you trust it and save network_weights, init_args and "
            "trainer_name anew."
        ) from error
    if not isinstance(state, dict) or not {"network_weights", "init_args"} <= set(state):
        raise SegdistillError(f"{path}: not a checkpoint of nnU-Net v2 (no network_weights, init_args).")
    return state


def _bare(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without what distributed and compiled networks put in front."""
    return {name.removeprefix("module.").removeprefix("_orig_mod."): v for name, v in weights.items()}


def _summary(out: Path, plan: Plan) -> Imported:
    card = read_json(out / TEACHER / "model.json")
    architecture = card["architecture"]
    size = " x ".join(map(str, plan.patch_size))
    network = f"{len(architecture['channels'])} levels, windows of {size} voxels"
    return Imported(out / PLAN, out / TEACHER, int(card["parameters"]), network)
