"""Logit distillation: the student's classes should be as likely as the teacher finds them."""

import torch
from torch import Tensor
from torch.nn import functional


def softened(logits: Tensor, temperature: float) -> Tensor:
    """A teacher's probabilities at a temperature, (B, K, ...) float32 from logits of that shape."""
    return torch.softmax(logits.detach().float() / temperature, dim=1)


def logit_loss(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the softened classes: summed over classes, averaged over voxels.

    Hinton et al. 2015 (arXiv 1503.02531). A mean over classes as well would weaken the term by the
    number of classes. Value and gradient come from one softmax; torch's own parts would take three
    more passes over the logits.

    Args:
        student: (B, K, X, Y, Z) logits.
        target: (B, K, X, Y, Z) the teacher's probabilities at the same temperature; no gradient flows
            into them.
        temperature: T > 0.
    """
    value: Tensor = _SoftKL.apply(student.float(), target.detach(), temperature)  # type: ignore[no-untyped-call]
    return value


class _SoftKL(torch.autograd.Function):
    """With q = softmax(z / T) and N voxels, the derivative of the term by z is T / N (q - p)."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, temperature: float) -> Tensor:  # type: ignore[no-untyped-def]
        log_q = functional.log_softmax(logits / temperature, dim=1)
        voxels = logits.numel() // logits.shape[1]
        kl = torch.xlogy(target, target).sum() - (target * log_q).sum()
        ctx.save_for_backward(log_q, target)
        ctx.slope = temperature / voxels
        return temperature**2 * kl / voxels

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        log_q, target = ctx.saved_tensors
        return log_q.exp().sub_(target).mul_(grad * ctx.slope), None, None
