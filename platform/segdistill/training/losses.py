"""What every network minimises: Dice and cross-entropy with the labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segdistill.overlap import IGNORED


def dice_ce(logits: Tensor, label: Tensor, dice_weight: float = 1.0, ce_weight: float = 1.0) -> Tensor:
    """Soft Dice loss (over the batch, mean of the structures) plus cross-entropy.

    nnU-Net's pair of losses (Isensee et al. 2021). It gives the value and the gradient of MONAI's
    ``DiceCELoss(softmax=True, to_onehot_y=True, batch=True, include_background=False)`` in a third of
    the passes over the logits, which on a CPU are most of a small student's step.

    Args:
        logits: (B, K, X, Y, Z) float.
        label: (B, X, Y, Z) int64, channel indices; voxels that are ``overlap.IGNORED`` count nowhere.
        dice_weight: of the Dice term.
        ce_weight: of the cross-entropy term.
    """
    value: Tensor = _DiceCE.apply(logits.float(), label, dice_weight, ce_weight)  # type: ignore[no-untyped-call]
    return value


class _DiceCE(torch.autograd.Function):
    """The loss and its derivative, from one softmax.

    With p = softmax(logits), label y and N voxels that aren't ignored, and for each of the structures
    k > 0 Dice_k = (2 I_k + e) / (P_k + T_k + e), where I_k sums p_k over the voxels of k, P_k sums p_k
    over all voxels and T_k counts the voxels of k, the loss is
    dice_weight * (1 - mean Dice_k) + ce_weight * mean(-log p_y).

    The Dice term's derivative by p_k is a_k, and b_k more where k = y. With c = ce_weight / N and
    s = sum_k a_k p_k + b_y p_y, the loss's derivative by a logit is
    p_k (a_k + c - s) + [k = y] (b_y p_y - c), and 0 at an ignored voxel.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, logits: Tensor, label: Tensor, dice_weight: float, ce_weight: float
    ) -> Tensor:
        batch, classes = logits.shape[:2]
        label = label.reshape(batch, 1, -1)
        ignored = label == IGNORED
        p = functional.log_softmax(logits.reshape(batch, classes, -1), dim=1)
        voxels = label.numel()
        if ignored.any():
            # As if such voxels were background beyond doubt: no share in any sum, and no slope.
            p = p.masked_fill(ignored, -torch.inf)
            label = label.masked_fill(ignored, 0)
            p[:, :1].masked_fill_(ignored, 0.0)
            voxels -= int(ignored.sum())
        log_p_true = p.gather(1, label)
        p = p.exp_()
        flat = label.reshape(-1)
        true = torch.bincount(flat, minlength=classes).to(p.dtype)
        overlap = torch.zeros_like(true).index_add(0, flat, log_p_true.exp().reshape(-1))
        size = p.sum(dim=(0, 2)) + true + _SMOOTH
        dice = (2 * overlap + _SMOOTH) / size
        share = torch.full_like(size, dice_weight / (classes - 1))
        share[0] = 0  # background has no Dice
        ctx.save_for_backward(p, label, share * dice / size, -2 * share / size)
        ce_share = ce_weight / max(voxels, 1)
        ctx.ce_share = ce_share
        ctx.shape = logits.shape
        return dice_weight * (1 - dice[1:].mean()) - ce_share * log_p_true.sum()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        p, label, a, b = ctx.saved_tensors
        c = ctx.ce_share
        true = p.gather(1, label) * b[label]
        s = torch.matmul(a, p).unsqueeze(1) + true
        gradient = ((a + c).reshape(1, -1, 1) - s).mul_(p)
        gradient.scatter_add_(1, label, true - c)
        return gradient.mul_(grad).reshape(ctx.shape), None, None, None


_SMOOTH = 1e-5


def level_shares(levels: int) -> list[float]:
    """Weights of the deep-supervision levels, finest first: nnU-Net's 1, 1/2, 1/4, ..., summing to 1."""
    scale = sum(0.5**level for level in range(levels))
    return [0.5**level / scale for level in range(levels)]


def at_level(values: Tensor, like: Tensor) -> Tensor:
    """Every n-th voxel of (B, ..., X, Y, Z), so that it has the resolution of ``like``."""
    x, y, z = (n // m for n, m in zip(values.shape[-3:], like.shape[-3:], strict=True))
    return values[..., x // 2 :: x, y // 2 :: y, z // 2 :: z]


def supervised_loss(
    levels: Sequence[Tensor], label: Tensor, dice_weight: float, ce_weight: float
) -> Tensor:
    """Dice and cross-entropy with the labels over all deep-supervision levels.

    Args:
        levels: logits of every level, finest first, each (B, K, x, y, z) at its own resolution.
        label: (B, X, Y, Z) int64 at the finest resolution.
        dice_weight: of the Dice term.
        ce_weight: of the cross-entropy term.
    """
    loss = label.new_zeros((), dtype=torch.float32)
    for share, logits in zip(level_shares(len(levels)), levels, strict=True):
        loss = loss + share * dice_ce(logits, at_level(label, logits), dice_weight, ce_weight)
    return loss
