"""A trained model on disk: weights as safetensors, and model.json that says what they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from segdistill.files import SegdistillError, atomic_folder, read_json, sha256_of, write_json
from segdistill.network.architecture import Architecture
from segdistill.network.finite import require_finite
from segdistill.network.unet import UNet, inference_parameters, macs, own_tensors
from segdistill.runtime.plan import Plan

Role = Literal["teacher", "student", "control"]

WEIGHTS = "model.safetensors"
MODEL_JSON = "model.json"


@dataclass(frozen=True)
class Model:
    """A trained network with what is known about it.

    Attributes:
        network: in evaluation mode, on the CPU.
        name: e.g. ``student-x4``.
        role: ``teacher``, ``student`` or ``control``.
        width: channel multiplier against the teacher.
        parameters: learned parameters that inference uses.
        macs: multiply-accumulates of one pass over one patch.
        plan_sha256: digest of the plan it was trained with.
        weights_sha256: digest of the weights' file.
        training: how it was trained (knobs, seed, teacher), for the record.
    """

    network: UNet
    name: str
    role: Role
    width: float
    parameters: int
    macs: int
    plan_sha256: str
    weights_sha256: str
    training: Mapping[str, Any]


def write_model(
    folder: Path,
    network: UNet,
    plan: Plan,
    *,
    name: str,
    role: Role,
    width: float,
    training: Mapping[str, Any],
) -> None:
    """Write ``model.safetensors`` and ``model.json``; the folder is whole or not there.

    Raises:
        SegdistillError: a weight isn't finite.
    """
    network = network.cpu().eval()
    require_finite(own_tensors(network), folder)
    with atomic_folder(folder) as partial:
        tensors = {name: value.contiguous() for name, value in own_tensors(network).items()}
        save_file(tensors, partial / WEIGHTS)
        write_json(
            partial / MODEL_JSON,
            {
                "name": name,
                "role": role,
                "width": width,
                "architecture": network.architecture.to_json(),
                "parameters": inference_parameters(network),
                "macs": macs(network, plan.patch_size),
                "macs_of": f"one patch of {' x '.join(map(str, plan.patch_size))} voxels",
                "plan_sha256": plan.digest(),
                "weights_sha256": sha256_of(partial / WEIGHTS),
                "training": dict(training),
            },
        )


def read_model(folder: Path, plan: Plan) -> Model:
    """Read a model that was trained with ``plan``.

    Raises:
        SegdistillError: a file is missing or altered, a weight isn't finite, or the model belongs to
            another plan.
    """
    model = read_any_model(folder)
    if model.plan_sha256 != plan.digest():
        raise SegdistillError(
            f"{folder / MODEL_JSON}: trained with another plan than the one given. Run 'dvc repro' so "
            "that the whole family is trained with one plan."
        )
    return model


def read_any_model(folder: Path) -> Model:
    """Read a model, whatever plan it was trained with.

    Raises:
        SegdistillError: a file is missing or altered, or a weight isn't finite.
    """
    card = read_json(folder / MODEL_JSON)
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256_of(weights) != card["weights_sha256"]:
        raise SegdistillError(f"{weights}: missing or altered since training. Run 'dvc repro' again.")
    network = UNet(Architecture.from_json(card["architecture"]))
    own, saved = own_tensors(network), load_file(weights)
    if {name: value.shape for name, value in own.items()} != {n: v.shape for n, v in saved.items()}:
        raise SegdistillError(
            f"{weights}: doesn't fit the architecture in {MODEL_JSON}. Run 'dvc repro' again."
        )
    require_finite(saved, weights)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])
    return Model(
        network=network.eval(),
        name=card["name"],
        role=card["role"],
        width=card["width"],
        parameters=card["parameters"],
        macs=card["macs"],
        plan_sha256=card["plan_sha256"],
        weights_sha256=card["weights_sha256"],
        training=card["training"],
    )


class TorchBackend:
    """A network as an inference backend of ``runtime``: arrays in, arrays out, no gradients."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network.eval()
        self._device = next(network.parameters()).device

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (1, K, X, Y, Z) float32 for an image (1, C, X, Y, Z) float32."""
        with torch.inference_mode():
            logits: NDArray[np.float32] = (
                self._network(torch.from_numpy(x).to(self._device)).float().cpu().numpy()
            )
        return logits
