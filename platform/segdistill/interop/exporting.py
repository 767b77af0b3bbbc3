"""From a model of this platform to a results folder that nnU-Net v2 predicts with, unchanged."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from segdistill.files import SegdistillError, atomic_folder, write_json
from segdistill.interop.names import hand_over, pairs
from segdistill.interop.plans import CONFIGURATION, differences, written
from segdistill.network.finite import require_finite
from segdistill.network.model import Model
from segdistill.network.unet import own_tensors
from segdistill.runtime.plan import Plan

TRAINER = "nnUNetTrainer"


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        folder: the results folder.
        differences: where nnU-Net treats scans otherwise than the plan; empty if nowhere.
        renumbered: whether nnU-Net's label codes differ from the plan's.
    """

    folder: Path
    differences: tuple[str, ...]
    renumbered: bool


def export_nnunet(model: Model, plan: Plan, out: Path) -> Exported:
    """Write plans.json, dataset.json and fold_0/checkpoint_final.pth; the folder is whole or not there.

    Mirroring is left out of the checkpoint, so ``nnUNetv2_predict`` runs one pass, as the runtime does.

    Args:
        model: a network with ``stem_stride`` 1 and instance norm.
        plan: the plan it was trained with.
        out: the new folder. nnU-Net finds it by name as
            ``Dataset123_NAME/nnUNetTrainer__nnUNetPlans__3d_fullres``.

    Raises:
        SegdistillError: nnU-Net can't express the network or its plan, a weight isn't finite, or ``out``
            is there already.
    """
    if out.exists():
        raise SegdistillError(f"{out}: exists. Name another folder, or remove it first.")
    named = re.fullmatch(r"Dataset\d{3}_\w+", out.resolve().parent.name)
    dataset_name = named[0] if named else f"Dataset999_{re.sub(r'[^0-9A-Za-z]+', '_', plan.task)}"
    network = model.network
    require_finite(own_tensors(network), model.name)
    plans, dataset, axes = written(plan, network.architecture, dataset_name)
    known = {f"{ours}.{part}" for ours, _ in pairs(network.architecture) for part in ("weight", "bias")}
    unknown = sorted(set(own_tensors(network)) - known)
    if unknown:
        raise SegdistillError(
            f"the network can't be an nnU-Net: it has {', '.join(unknown[:3])}, which nnU-Net's "
            "PlainConvUNet has no counterpart of."
        )
    with atomic_folder(out) as partial:
        write_json(partial / "plans.json", plans)
        write_json(partial / "dataset.json", dataset)
        (partial / "fold_0").mkdir()
        torch.save(
            {
                "network_weights": hand_over(network, axes),
                "optimizer_state": {},
                "grad_scaler_state": None,
                "logging": {},
                "_best_ema": None,
                "current_epoch": 0,
                "init_args": {
                    "plans": plans,
                    "configuration": CONFIGURATION,
                    "fold": 0,
                    "dataset_json": dataset,
                },
                "trainer_name": TRAINER,
                "inference_allowed_mirroring_axes": None,
            },
            partial / "fold_0" / "checkpoint_final.pth",
        )
    codes = plan.codes != tuple(range(plan.channels_out))
    return Exported(out, differences(plan), codes)
