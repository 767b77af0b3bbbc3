"""Region distillation: within every structure, the student's features should be the teacher's."""

from torch import Tensor
from torch.nn import functional

_EPSILON = 1e-5


def region_loss(student: Tensor, teacher: Tensor, label: Tensor, classes: int) -> Tensor:
    """Squared difference of features, averaged within each class, then over the classes present.

    After the class-aware regions of ReCo-KD (arXiv 2601.08301): a region's weight is one over its number
    of voxels, so that the hippocampus counts as the cortex does. The teacher's channels are brought to
    mean 0 and standard deviation 1 first, so that no channel and no level outweighs another.

    Args:
        student: (B, C, X, Y, Z) features, already projected to the teacher's channels.
        teacher: (B, C, X, Y, Z) features; no gradient flows into them.
        label: (B, X, Y, Z) int64 classes at the features' resolution; ignored voxels are of no class.
        classes: number of classes, background included.
    """
    flat = label.reshape(-1)
    count = flat.bincount(minlength=classes)
    count[classes:] = 0
    weight = (count > 0).float() / count.clamp(min=1) / (count > 0).sum()
    difference = (student.float() - standardised(teacher)).square().mean(dim=1)
    return (difference.reshape(-1) * weight[flat]).sum()


def standardised(features: Tensor) -> Tensor:
    """Every channel of (B, C, X, Y, Z) at mean 0 and standard deviation 1 over batch and voxels."""
    return functional.batch_norm(features.detach().float(), None, None, training=True, eps=_EPSILON)
