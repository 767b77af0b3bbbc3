"""Which tensor and which axis of nnU-Net's PlainConvUNet is which of ours.

nnU-Net reads a scan as (z, y, x) and may turn the axes once more (``transpose_forward``); here a scan is
(X, Y, Z) as the file stores it. Convolution kernels are turned instead of scans, which is exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segdistill.network.architecture import Architecture
from segdistill.network.unet import UNet, own_tensors


def our_axes(transpose_forward: Sequence[int]) -> tuple[int, int, int]:
    """For each of our axes (X, Y, Z), the number of the axis of nnU-Net's network that it is."""
    order = list(transpose_forward)
    return order.index(2), order.index(1), order.index(0)


def reordered(values: Sequence[Any], axes: Sequence[int]) -> tuple[Any, Any, Any]:
    """Three values in nnU-Net's order of axes, in our order."""
    x, y, z = (values[axis] for axis in axes)
    return x, y, z


def turned_kernel(weights: Tensor, axes: Sequence[int]) -> Tensor:
    """A kernel (out, in, ...) in nnU-Net's order of axes, in our order."""
    return weights.permute(0, 1, *(2 + axis for axis in axes)).contiguous()


def pairs(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """(our layer, nnU-Net's layer) of every convolution and norm of the network, without ``.weight``.

    nnU-Net's output layers are numbered from the coarsest on; the last one gives the result, the others
    are for deep supervision.
    """
    levels = len(architecture.channels)
    encoder = ["input_block", *(f"downsamples.{i}" for i in range(levels - 2)), "bottleneck"]
    blocks = [(f"body.{name}", f"encoder.stages.{level}.0") for level, name in enumerate(encoder)]
    for step in range(levels - 1):
        yield f"body.upsamples.{step}.transp_conv.conv", f"decoder.transpconvs.{step}"
        blocks.append((f"body.upsamples.{step}.conv_block", f"decoder.stages.{step}"))
    for ours, theirs in blocks:
        for index in range(2):
            yield f"{ours}.conv{index + 1}.conv", f"{theirs}.convs.{index}.conv"
            yield f"{ours}.norm{index + 1}", f"{theirs}.convs.{index}.norm"
    yield "body.output_block.conv.conv", f"decoder.seg_layers.{levels - 2}"
    for index in range(architecture.deep_supervision):
        head = f"body.deep_supervision_heads.{index}.conv.conv"
        yield head, f"decoder.seg_layers.{levels - 3 - index}"


def is_copy(name: str) -> bool:
    """Whether nnU-Net's state holds this tensor under another name too."""
    return name.startswith("decoder.encoder.") or ".all_modules." in name


def take_over(network: UNet, state: Mapping[str, Tensor], axes: Sequence[int]) -> list[str]:
    """Fill our network with nnU-Net's weights; returns what doesn't fit, or nothing.

    A convolution's bias before an instance norm is dropped: the norm takes it out again.
    """
    own = own_tensors(network)
    left = {name for name in state if not is_copy(name)}
    wrong = []
    for ours, theirs in pairs(network.architecture):
        for part in ("weight", "bias"):
            source, target = state.get(f"{theirs}.{part}"), own.pop(f"{ours}.{part}", None)
            left.discard(f"{theirs}.{part}")
            if target is None:
                continue
            if source is None and part == "bias":  # conv_bias: false
                source = torch.zeros_like(target)
            if source is not None and source.ndim == 5:
                source = turned_kernel(source, axes)
            if source is None or source.shape != target.shape:
                wrong.append(f"{theirs}.{part}")
                continue
            with torch.no_grad():
                target.copy_(source)
    return wrong + sorted(left) + sorted(own)


def hand_over(network: UNet, axes: Sequence[int]) -> dict[str, Tensor]:
    """Our network's weights as the state of nnU-Net's PlainConvUNet with ``conv_bias: true``.

    Biases that we don't have are zero. So are coarse outputs that weren't trained; inference doesn't
    use them, but nnU-Net wants every tensor there.
    """
    own, architecture = own_tensors(network), network.architecture
    back = sorted(range(3), key=lambda axis: axes[axis])
    state: dict[str, Tensor] = {}
    for ours, theirs in pairs(architecture):
        weights = own[f"{ours}.weight"].detach()
        if weights.ndim == 5:
            weights = turned_kernel(weights, back)
        bias = own.get(f"{ours}.bias")
        count = weights.shape[1] if "transpconvs" in theirs else weights.shape[0]
        state[f"{theirs}.weight"] = weights.clone()
        state[f"{theirs}.bias"] = torch.zeros(count) if bias is None else bias.detach().clone()
    levels = len(architecture.channels)
    for step in range(levels - 1):
        if f"decoder.seg_layers.{step}.weight" not in state:
            channels = architecture.channels[levels - 2 - step]
            shape = (architecture.channels_out, channels, 1, 1, 1)
            state[f"decoder.seg_layers.{step}.weight"] = torch.zeros(shape)
            state[f"decoder.seg_layers.{step}.bias"] = torch.zeros(architecture.channels_out)
    for name, value in list(state.items()):
        for place, part in enumerate(("conv", "norm")):
            copy = name.replace(f".{part}.", f".all_modules.{place}.")
            if copy != name:
                state[copy] = value
    for name, value in list(state.items()):
        if name.startswith("encoder."):
            state[f"decoder.{name}"] = value
    return state
