"""What training minimises: Dice and cross-entropy with the labels, and the teacher's soft labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms.

    Attributes:
        dice: of 1 - soft Dice with the labels.
        ce: of the cross-entropy with the labels.
        kd: of the distillation term; without a teacher it has no effect.
        temperature: softens both networks' logits in the distillation term.
    """

    dice: float
    ce: float
    kd: float
    temperature: float


def dice_ce(logits: Tensor, label: Tensor, dice_weight: float = 1.0, ce_weight: float = 1.0) -> Tensor:
    """Soft Dice loss (over the batch, mean of the structures) plus cross-entropy.

    nnU-Net's pair of losses (Isensee et al. 2021). It gives the value and the gradient of MONAI's
    ``DiceCELoss(softmax=True, to_onehot_y=True, batch=True, include_background=False)`` in a third of
    the passes over the logits, which on a CPU are most of a small student's step.

    Args:
        logits: (B, K, X, Y, Z) float.
        label: (B, X, Y, Z) int64, channel indices.
        dice_weight: of the Dice term.
        ce_weight: of the cross-entropy term.
    """
    value: Tensor = _DiceCE.apply(logits.float(), label, dice_weight, ce_weight)  # type: ignore[no-untyped-call]
    return value


class _DiceCE(torch.autograd.Function):
    """The loss and its derivative, from one softmax.

    With p = softmax(logits), label y and N voxels, and for each of the structures k > 0
    Dice_k = (2 I_k + e) / (P_k + T_k + e), where I_k sums p_k over the voxels of k, P_k sums p_k over
    all voxels and T_k counts the voxels of k, the loss is
    dice_weight * (1 - mean Dice_k) + ce_weight * mean(-log p_y).

    The Dice term's derivative by p_k is a_k, and b_k more where k = y. With c = ce_weight / N and
    s = sum_k a_k p_k + b_y p_y, the loss's derivative by a logit is
    p_k (a_k + c - s) + [k = y] (b_y p_y - c).
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, logits: Tensor, label: Tensor, dice_weight: float, ce_weight: float
    ) -> Tensor:
        batch, classes = logits.shape[:2]
        label = label.reshape(batch, 1, -1)
        p = functional.log_softmax(logits.reshape(batch, classes, -1), dim=1)
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
        ctx.ce_share = ce_weight / flat.numel()
        ctx.shape = logits.shape
        return dice_weight * (1 - dice[1:].mean()) - ce_weight * log_p_true.mean()

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


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the softened classes: summed over classes, averaged over voxels.

    Hinton et al. 2015 (arXiv 1503.02531). A mean over classes as well would weaken the term by the
    number of classes.

    Args:
        student: (B, K, X, Y, Z) logits.
        teacher: (B, K, X, Y, Z) logits; no gradient flows into them.
        temperature: T > 0.
    """
    log_q = functional.log_softmax(student.float() / temperature, dim=1)
    log_p = functional.log_softmax(teacher.detach().float() / temperature, dim=1)
    voxels = student.numel() // student.shape[1]
    kl = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * kl / voxels


def total_loss(
    levels: Sequence[Tensor],
    label: Tensor,
    weights: LossWeights,
    teacher_levels: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """The loss over all deep-supervision levels, weighted 1, 1/2, 1/4, ... as nnU-Net, summing to 1.

    Args:
        levels: logits of every level, finest first, each (B, K, x, y, z) at its own resolution.
        label: (B, X, Y, Z) int64 at the finest resolution; coarser levels take every n-th voxel of it.
        weights: of the terms.
        teacher_levels: the teacher's logits at the same levels, or None (teacher and control).

    Returns:
        ``loss`` (to minimise), ``supervised`` and ``distillation`` (both before weighting by ``kd``).
    """
    scale = sum(0.5**level for level in range(len(levels)))
    supervised = label.new_zeros((), dtype=torch.float32)
    distilled = label.new_zeros((), dtype=torch.float32)
    for level, logits in enumerate(levels):
        share = 0.5**level / scale
        x, y, z = (n // m for n, m in zip(label.shape[1:], logits.shape[2:], strict=True))
        target = label[:, x // 2 :: x, y // 2 :: y, z // 2 :: z]
        supervised = supervised + share * dice_ce(logits, target, weights.dice, weights.ce)
        if teacher_levels is not None:
            distilled = distilled + share * distillation(
                logits, teacher_levels[level], weights.temperature
            )
    return {
        "loss": supervised + weights.kd * distilled,
        "supervised": supervised.detach(),
        "distillation": distilled.detach(),
    }
