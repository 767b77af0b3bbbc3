"""A student's start: the teacher's own features, as many as the student has channels for."""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from segdistill.network.unet import SLOPE, UNet

_PLACES = 4000  # of a layer that are looked at, per batch
_RIDGE = 1e-3  # of the mean variance of a layer's inputs; keeps the equations solvable
_VOXEL = (1, 1, 1)

Layer = nn.Conv3d | nn.ConvTranspose3d


def inherit(student: UNet, teacher: UNet, images: Sequence[Tensor]) -> dict[str, float]:
    """Set the student's weights so that its channels do what chosen channels of the teacher do.

    Layer by layer, from the image to the logits. Of the teacher's channels those are kept from which the
    others are best predicted. The student's convolution is then the linear least-squares fit from what
    the student has in front of it to the teacher's values in the kept channels, so a layer makes up for
    the errors of those before it. Norms take the teacher's scale and shift. The last convolutions, of
    the coarser outputs too, are fitted to the teacher's logits.

    After the channel pruning of He et al. 2017 (arXiv 1707.06168). A student as wide as its teacher gets
    the teacher's function. Nothing of the student's random start remains, and its architecture is its
    own as before.

    Args:
        student: a network of the teacher's architecture with at most its channels; changed in place.
        teacher: the trained network.
        images: batches (B, C, X, Y, Z) float32 of training patches, on the networks' device.

    Returns:
        By layer, the share of the teacher's variance that the student's layer explains (R^2).
    """
    training = student.training, teacher.training
    student.eval()
    teacher.eval()
    random = torch.Generator().manual_seed(0)
    explained = {}
    with torch.no_grad():
        teachers = _layers(teacher)
        seen = _look_at_teacher(teacher, teachers, images, random)
        for name, layer in _layers(student).items():
            places, values, features = seen.pop(name)
            norm = _norm_after(student, name)
            if layer.out_channels == teachers[name].out_channels:
                kept = torch.arange(layer.out_channels)
            else:
                kept = representatives(torch.cat(features), layer.out_channels)
            targets = [value[:, kept] for value in values]
            explained[name], shift = _fit(layer, _inputs(student, layer, images, places), targets)
            if norm is not None:
                _copy_norm(norm, _norm_after(teacher, name), kept, shift)
    student.train(training[0])
    teacher.train(training[1])
    return explained


def representatives(features: Tensor, count: int) -> Tensor:
    """The channels from which all are best predicted, chosen greedily; ascending, int64.

    Args:
        features: (samples, channels) float.
        count: how many to choose.
    """
    centred = (features - features.mean(dim=0)).double()
    unexplained = centred.T @ centred / len(centred)
    chosen: list[int] = []
    for _ in range(count):
        gain = unexplained.square().sum(dim=0) / (unexplained.diagonal() + 1e-9)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        column = unexplained[:, best : best + 1]
        unexplained = unexplained - column @ column.T / (unexplained[best, best] + 1e-9)
    return torch.tensor(sorted(chosen))


def _layers(network: UNet) -> dict[str, Layer]:
    """The convolutions by name, in the order in which an image meets them."""
    return {name: part for name, part in network.named_modules() if isinstance(part, Layer)}


def _norm_after(network: UNet, name: str) -> nn.Module | None:
    """The norm after a convolution; the transposed ones and those that give logits have none."""
    block, _, own = name.removesuffix(".conv").rpartition(".")
    if own not in ("conv1", "conv2"):
        return None
    return network.get_submodule(f"{block}.norm{own[-1]}")


_Seen = dict[str, tuple[list[Tensor], list[Tensor], list[Tensor]]]


def _look_at_teacher(
    teacher: UNet, layers: dict[str, Layer], images: Sequence[Tensor], random: torch.Generator
) -> _Seen:
    """By layer, per batch: places, values there (n, channels, cell), activations (m, channels)."""
    seen: _Seen = {name: ([], [], []) for name in layers}

    def hook_for(name: str, layer: Layer, norm: nn.Module | None):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            cell = layer.stride if isinstance(layer, nn.ConvTranspose3d) else _VOXEL
            places, values, features = seen[name]
            count = output[:, 0].numel() // math.prod(cell)
            places.append(torch.randperm(count, generator=random)[:_PLACES].to(output.device))
            values.append(_cells(output, cell)[places[-1]])
            active = output if norm is None else functional.leaky_relu(norm(output), SLOPE)
            features.append(_cells(active, cell)[places[-1]].transpose(1, 2).flatten(0, 1))

        return hook

    hooks = [
        layer.register_forward_hook(hook_for(name, layer, _norm_after(teacher, name)))
        for name, layer in layers.items()
    ]
    for image in images:
        teacher.levels(image)
    for hook in hooks:
        hook.remove()
    return seen


def _cells(values: Tensor, cell: Sequence[int]) -> Tensor:
    """(B, C, X, Y, Z) as rows of cells of (r, s, t) voxels: (B * X/r * Y/s * Z/t, C, r*s*t)."""
    batch, channels, *size = values.shape
    x, y, z = (n // side for n, side in zip(size, cell, strict=True))
    parts = values.reshape(batch, channels, x, cell[0], y, cell[1], z, cell[2])
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch * x * y * z, channels, math.prod(cell))


def _inputs(
    student: UNet, layer: Layer, images: Sequence[Tensor], places: Sequence[Tensor]
) -> list[Tensor]:
    """What the student's layer gets at each place, per batch: rows (n, kernel^3 * channels)."""
    got: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
    rows = []
    for image, chosen in zip(images, places, strict=True):
        student.levels(image)
        rows.append(_neighbourhoods(got.pop(), layer, chosen))
    hook.remove()
    return rows


def _neighbourhoods(values: Tensor, layer: Layer, places: Tensor) -> Tensor:
    if isinstance(layer, nn.ConvTranspose3d):
        return _cells(values, _VOXEL)[places, :, 0]
    kernel, stride, padding = layer.kernel_size, layer.stride, [int(n) for n in layer.padding]
    around = [n for side in reversed(padding) for n in (side, side)]  # pad() begins with the last axis
    padded = functional.pad(values, around).permute(0, 2, 3, 4, 1).contiguous()
    size = [
        (n + 2 * side - width) // step + 1
        for n, side, width, step in zip(values.shape[2:], padding, kernel, stride, strict=True)
    ]
    batch, x, y, z = torch.unravel_index(places, (values.shape[0], *size))
    return torch.cat(
        [
            padded[batch, x * stride[0] + i, y * stride[1] + j, z * stride[2] + k]
            for i, j, k in product(*map(range, kernel))
        ],
        dim=1,
    )


def _fit(layer: Layer, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[float, Tensor]:
    """Solve for the layer's weights; returns R^2 and the mean, by channel, that has no bias to go to."""
    rows = sum(len(x) for x in inputs)
    outputs = [y.flatten(1) for y in targets]
    mean_in = torch.stack([x.sum(dim=0) for x in inputs]).sum(dim=0) / rows
    mean_out = torch.stack([y.sum(dim=0) for y in outputs]).sum(dim=0) / rows
    gram = mean_in.new_zeros(len(mean_in), len(mean_in), dtype=torch.float64)
    cross = mean_in.new_zeros(len(mean_in), len(mean_out), dtype=torch.float64)
    total = mean_in.new_zeros((), dtype=torch.float64)
    for x, y in zip(inputs, outputs, strict=True):
        centred_in, centred_out = x - mean_in, y - mean_out
        gram += centred_in.T @ centred_in
        cross += centred_in.T @ centred_out
        total += centred_out.square().sum()
    ridge = _RIDGE * gram.diagonal().mean() + 1e-12
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), cross)
    residual = total - 2 * (weights * cross).sum() + (weights * (gram @ weights)).sum()

    cell = layer.out_channels, *layer.kernel_size
    if isinstance(layer, nn.ConvTranspose3d):
        layer.weight.copy_(weights.reshape(layer.in_channels, *cell))
    else:
        by_place = weights.reshape(*layer.kernel_size, layer.in_channels, layer.out_channels)
        layer.weight.copy_(by_place.permute(4, 3, 0, 1, 2))
    offset = (mean_out - mean_in @ weights.float()).reshape(layer.out_channels, -1).mean(dim=1)
    if layer.bias is not None:
        layer.bias.copy_(offset)
        offset = torch.zeros_like(offset)
    return float(1 - residual / total.clamp(min=1e-12)), offset


def _copy_norm(norm: nn.Module, source: nn.Module | None, kept: Tensor, shift: Tensor) -> None:
    """The teacher's norm in the kept channels; batch norm expects values that are ``shift`` lower."""
    assert source is not None  # noqa: S101 - both networks are of one architecture
    for name, value in source.state_dict().items():
        own = norm.state_dict()[name]
        own.copy_(value if value.ndim == 0 else value[kept])
        if name == "running_mean":
            own.sub_(shift)
