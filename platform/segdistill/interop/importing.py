"""From an nnU-Net v2 results folder to a teacher of this platform."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdistill.files import SegdistillError, atomic_folder, sha256_of
from segdistill.interop.names import take_over
from segdistill.interop.plans import understand
from segdistill.interop.ready import TEACHER
from segdistill.network.finite import require_finite
from segdistill.network.model import write_model
from segdistill.network.unet import UNet, inference_parameters
from segdistill.runtime.plan import PLAN
from segdistill.texts import read_json_object, whole_number

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


_PARTS = ("network_weights", "init_args")
_SAVE_ANEW = (
    "Load it where you trust it, and save network_weights, trainer_name and init_args (with its "
    "'configuration', e.g. '3d_fullres') anew."
)


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
        out: the new folder, laid out as ``models/TASK``; whole or not there.
        fold: a number, or ``all``.
        checkpoint: name of the checkpoint in the fold's folder.
        task: see :func:`~segdistill.interop.plans.understand`.
        label_protocol: see there.
        orientation: see there.

    Raises:
        SegdistillError: the model can't be expressed exactly, a file is missing or holds code, a weight
            isn't finite, or there is something at ``out`` already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SegdistillError(f"{out}: exists. Name another folder, or remove it first.")
    plans, dataset = (read_json_object(results / name) for name in ("plans.json", "dataset.json"))
    path = results / f"fold_{fold}" / checkpoint
    state = read_checkpoint(path)
    configuration = state["init_args"].get("configuration")
    if not isinstance(configuration, str):
        raise SegdistillError(
            f"{path}: its init_args don't name the configuration it was trained in. {_SAVE_ANEW}"
        )
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
    weights = _bare(state["network_weights"])
    require_finite(weights, path)
    wrong = take_over(network, weights, understood.axes)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SegdistillError(
            f"{path}: {', '.join(wrong[:3])}{more} don't fit the network that plans.json describes. "
            f"Trainer {state.get('trainer_name')} may have built another one; that can't be imported."
        )
    trainer = state.get("trainer_name")
    with atomic_folder(out) as partial:
        understood.plan.write(partial / PLAN)
        write_model(
            partial / TEACHER,
            network,
            understood.plan,
            name=TEACHER,
            role="teacher",
            width=1.0,
            training={
                "imported_from": "nnU-Net v2",
                "dataset": str(plans["dataset_name"]),
                "configuration": configuration,
                "trainer": trainer if isinstance(trainer, str) else None,
                "fold": fold,
                "checkpoint": checkpoint,
                "checkpoint_sha256": sha256_of(path),
                "plans_sha256": sha256_of(results / "plans.json"),
                "epochs": _epochs(state.get("current_epoch")),
            },
        )
    size = " x ".join(map(str, understood.plan.patch_size))
    return Imported(
        out / PLAN,
        out / TEACHER,
        inference_parameters(network),
        f"{len(understood.architecture.channels)} levels, windows of {size} voxels",
    )


def _epochs(value: Any) -> int:
    try:
        return whole_number(value)
    except ValueError:
        return 0


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
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes: whatever torch's readers raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SegdistillError(
            f"{path}: can't be read as tensors and numbers alone ({first}). Copy it anew if it "
            f"isn't whole; one that holds code isn't opened here. {_SAVE_ANEW}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(state.get(name), dict) for name in _PARTS):
        raise SegdistillError(f"{path}: not a checkpoint of nnU-Net v2 (no {', '.join(_PARTS)}).")
    for name, value in state["network_weights"].items():
        plain = isinstance(value, torch.Tensor) and value.layout is torch.strided
        if not plain or value.is_complex() or value.is_quantized:
            raise SegdistillError(
                f"{path}: {name} in network_weights isn't a plain tensor. {_SAVE_ANEW}"
            )
    return state


def _bare(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without what distributed and compiled networks put in front."""
    return {
        str(name).removeprefix("module.").removeprefix("_orig_mod."): value
        for name, value in weights.items()
    }
