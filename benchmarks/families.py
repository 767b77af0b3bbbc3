"""Families to time: a plain nnU-Net at 1 mm with random weights, and the one that the pipeline trained.

Time and memory don't depend on the weights' values, so the paper's scale can be timed without its data.
Accuracy can't: that is what the trained family is for.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segdistill.interop.exporting import export_nnunet
from segdistill.network.architecture import Architecture, NetworkKnobs, Norm
from segdistill.network.export import activations, export_onnx
from segdistill.network.model import read_model, write_model
from segdistill.network.quantise import quantise
from segdistill.network.unet import UNet, macs
from segdistill.runtime.bundle import Bundle, write_bundle
from segdistill.runtime.plan import Normalisation, Plan, Structure

WIDTHS = {"teacher": 1.0, "student-x2": 0.5, "student-x4": 0.25, "student-x8": 0.125}
# nnU-Net's own 3d_fullres for brains of this size, with windows of 128 voxels.
KNOBS = NetworkKnobs(
    base_channels=32,
    max_channels=320,
    stages=6,
    stem_stride=1,
    norm="instance",
    min_channels=4,
    deep_supervision=4,
)
PLAN = Plan(
    task="brain_mri",
    modality="mri",
    orientation="RAS",
    spacing_mm=(1.0, 1.0, 1.0),
    foreground="nonzero",
    normalisation=Normalisation("zscore", region="crop"),
    patch_size=(128, 128, 128),
    size_divisor=(32, 32, 32),
    mode="windows",
    overlap=0.5,
    structures=tuple(Structure(code, f"structure_{code}") for code in range(1, 11)),
    label_protocol="timing",
    convention="nnunet",
)


@dataclass(frozen=True)
class Contender:
    """A model in every form that a pipeline takes.

    Attributes:
        name: e.g. ``student-x4``.
        bundle: for the runtime.
        model: folder of the torch model, for MONAI.
        plan: file of the plan.
        nnunet: nnU-Net's results folder, or None where it can't express the network.
    """

    name: str
    bundle: Bundle
    model: Path
    plan: Path
    nnunet: Path | None


def make(folder: Path, norm: Norm) -> list[Contender]:
    """A family of plain nnU-Nets with random weights, with instance norm (as nnU-Net) or batch norm."""
    folder.mkdir(parents=True)
    plan = PLAN if norm == "instance" else replace(PLAN, convention="own")
    plan.write(folder / "plan.json")
    members = []
    for name, width in WIDTHS.items():
        torch.manual_seed(0)
        architecture = Architecture.scaled(replace(KNOBS, norm=norm), width, plan.channels_out)
        network = UNet(architecture).eval()
        write_model(folder / name, network, plan, name=name, role="teacher", width=width, training={})
        onnx, int8 = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
        export_onnx(network, plan, onnx)
        noise = np.random.default_rng(0).standard_normal((1, *plan.patch_size)).astype(np.float32)
        quantise(onnx, plan, [noise], int8)
        patch = plan.patch_size
        facts = {
            "name": name,
            "macs": macs(network, patch),
            "activations": activations(network, patch),
            "parameters": read_model(folder / name, plan).parameters,
        }
        bundle = write_bundle(folder / f"{name}-bundle", onnx, plan, facts, int8)
        onnx.unlink()
        int8.unlink()
        nnunet = None
        if norm == "instance":
            nnunet = folder / f"{name}-nnunet"
            export_nnunet(read_model(folder / name, plan), plan, nnunet)
        members.append(Contender(name, bundle, folder / name, folder / "plan.json", nnunet))
    return members


def trained(root: Path, task: str) -> list[Contender]:
    """The family that the pipeline trained, teacher and students; empty where it hasn't run yet."""
    return [
        Contender(
            name,
            Bundle.read(folder),
            root / "models" / task / name,
            root / "models" / task / "plan.json",
            None,
        )
        for name in WIDTHS
        if (folder := root / "bundles" / task / name).is_dir()
    ]
