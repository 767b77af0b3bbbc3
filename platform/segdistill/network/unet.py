"""The network itself: MONAI's DynUNet with deep supervision at every level's own resolution."""

from typing import Any

import torch
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segdistill.network.architecture import Architecture

SLOPE = 0.01  # of the leaky ReLU, DynUNet's and ours


class _Body(DynUNet):  # type: ignore[misc]
    """DynUNet whose decoder has each level's own kernel (as nnU-Net), not that of the level below."""

    kernel_size: Any

    def get_upsamples(self) -> Any:
        kernels = self.kernel_size
        self.kernel_size = [kernels[0], *kernels[:-1]]
        blocks = super().get_upsamples()
        self.kernel_size = kernels
        return blocks


class UNet(nn.Module):
    """A U-Net after nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), built on DynUNet.

    Input (B, C, X, Y, Z) float, every axis a multiple of the product of the strides. In evaluation
    mode the output is the logits (B, K, X, Y, Z). In training mode it is a list: the same logits, then
    those of ``deep_supervision`` coarser levels at their own resolution, finest first (DynUNet itself
    would interpolate them all to the finest and train on copies).

    With a ``stem_stride`` of s > 1 the first level already works on cells of s^3 voxels. The last
    convolution then predicts s^3 times K channels, one set per voxel of the cell, so the output keeps
    the full resolution. Before it, one more layer joins the features with the image's own s^3 voxels of
    the cell: alone, the few features of a narrow student can't tell s^3 voxels of many classes apart.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.body = _Body(
            spatial_dims=3,
            in_channels=architecture.channels_in,
            out_channels=architecture.channels_out * architecture.stem_stride**3,
            kernel_size=architecture.kernels,
            strides=architecture.strides,
            upsample_kernel_size=architecture.strides[1:],
            filters=architecture.channels,
            norm_name=(architecture.norm, {"affine": True}),
            deep_supervision=True,
            deep_supr_num=architecture.deep_supervision,
            trans_bias=True,
        )
        if architecture.stem_stride > 1:
            cell = architecture.stem_stride**3
            joined = architecture.channels[0] + architecture.channels_in * cell
            self.body.output_block.conv.conv = nn.Sequential(
                nn.Conv3d(joined, joined, kernel_size=1),
                nn.LeakyReLU(SLOPE),
                nn.Conv3d(joined, architecture.channels_out * cell, kernel_size=1),
            )
        # The coarser heads predict classes, not cells of classes.
        for index, head in enumerate(self.body.deep_supervision_heads):
            head.conv.conv = nn.Conv3d(
                architecture.channels[index + 1], architecture.channels_out, kernel_size=1
            )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """See the class."""
        logits = self._finest(image)
        return [logits, *self.body.heads] if self.training else logits

    def _finest(self, image: Tensor) -> Tensor:
        stride = self.architecture.stem_stride
        features = self.body.skip_layers(image)
        if stride > 1:
            features = torch.cat([features, fold_cells(image, stride)], dim=1)
        return unfold_cells(self.body.output_block(features), stride)

    def levels(self, image: Tensor) -> list[Tensor]:
        """The logits of every trained level, in evaluation mode too (a teacher's, for distillation)."""
        logits = self._finest(image)
        return [logits, *self.body.heads]


def unfold_cells(cells: Tensor, stride: int) -> Tensor:
    """Spread channels over the voxels of a cell: (B, K * s^3, x, y, z) to (B, K, s*x, s*y, s*z).

    The three-dimensional sub-pixel rearrangement of Shi et al. 2016 (arXiv 1609.05158).
    """
    if stride == 1:
        return cells
    batch, channels, x, y, z = cells.shape
    parts = cells.reshape(batch, channels // stride**3, stride, stride, stride, x, y, z)
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        batch, channels // stride**3, x * stride, y * stride, z * stride
    )


def fold_cells(image: Tensor, stride: int) -> Tensor:
    """Bring a cell's voxels into channels: (B, C, s*x, s*y, s*z) to (B, C * s^3, x, y, z)."""
    batch, channels, *size = image.shape
    x, y, z = (n // stride for n in size)
    parts = image.reshape(batch, channels, x, stride, y, stride, z, stride)
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, channels * stride**3, x, y, z)


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each under one name (DynUNet registers its blocks under several)."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def inference_parameters(network: UNet) -> int:
    """Number of learned parameters that inference uses (without the deep-supervision heads)."""
    return sum(
        value.numel()
        for name, value in network.named_parameters()
        if "super_head" not in name and "deep_supervision" not in name
    )


def macs(network: UNet, patch_size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one pass over one patch of ``patch_size`` voxels."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, network.architecture.channels_in, *patch_size, device=device))
    network.train(was_training)
    return int(counter.get_total_flops()) // 2
