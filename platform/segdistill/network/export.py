"""From a trained model to ONNX, the check that both say the same, and the memory that it takes."""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdistill.files import SegdistillError, atomic_path
from segdistill.network.finite import require_finite
from segdistill.network.unet import UNet, own_tensors
from segdistill.runtime.plan import Plan

OPSET = 17


def export_onnx(network: UNet, plan: Plan, path: Path) -> None:
    """Write the network as ONNX: ``scan`` (1, C, X, Y, Z) to ``logits`` (1, K, X, Y, Z), float32.

    X, Y and Z are dynamic, in multiples of ``plan.size_divisor``. Batch norm is folded into the
    convolutions. The TorchScript-based exporter is used: it is ten times quicker than the newer one and
    needs no further package.

    Raises:
        SegdistillError: a weight isn't finite, or the disk is full.
    """
    require_finite(own_tensors(network), path)
    example = torch.zeros(1, network.architecture.channels_in, *plan.patch_size)
    axes = {2: "x", 3: "y", 4: "z"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.cpu().eval(),
            (example,),
            str(partial),
            input_names=["scan"],
            output_names=["logits"],
            dynamic_axes={"scan": axes, "logits": axes},
            opset_version=OPSET,
            dynamo=False,
        )


def activations(network: UNet, patch_size: tuple[int, int, int]) -> float:
    """An upper estimate of the values that inference holds at once, per input voxel.

    What the encoder's levels keep for the decoder, and the largest input and output of any one layer.
    """
    body = network.body
    kept, largest = 0, 0

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal kept
        kept += output.numel()

    def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, inputs[0].numel() + output.numel())

    hooks = [block.register_forward_hook(keep) for block in (body.input_block, *body.downsamples)]
    hooks += [part.register_forward_hook(look) for part in network.modules() if not any(part.children())]
    was_training = network.training
    network.eval()
    with torch.no_grad():
        device = next(network.parameters()).device
        logits = network(torch.zeros(1, network.architecture.channels_in, *patch_size, device=device))
    for hook in hooks:
        hook.remove()
    network.train(was_training)
    return float(kept + max(largest, 2 * logits.numel())) / math.prod(patch_size)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of voxels whose winning class is the same in two logits (K, X, Y, Z)."""
    if ours.shape != theirs.shape:
        raise SegdistillError(f"logits of shape {ours.shape} and {theirs.shape} can't be compared.")
    return float(np.mean(ours.argmax(axis=0) == theirs.argmax(axis=0)))
