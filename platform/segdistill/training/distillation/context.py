"""Context distillation: what is alike to the teacher should be alike to the student."""

import torch
from torch import Tensor
from torch.nn import functional

PLACES = 24  # voxels drawn per class; their affinities are a matrix of (24 K)^2 at most


def context_loss(student: Tensor, teacher: Tensor, places: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities between all pairs of the chosen voxels.

    The multi-scale alignment of affinities of ReCo-KD (arXiv 2601.08301), on voxels drawn class by class
    instead of on all of them, which keeps the matrices small and the small structures in them.

    Args:
        student: (B, C, X, Y, Z) features, already projected.
        teacher: (B, C', X, Y, Z) features; no gradient flows into them.
        places: (N,) int64 indices into the B * X * Y * Z voxels, of :func:`places_by_class`.
    """
    ours, theirs = _affinities(student, places), _affinities(teacher.detach(), places)
    return (ours - theirs).square().mean()


def places_by_class(label: Tensor, classes: int, random: torch.Generator) -> Tensor:
    """Up to :data:`PLACES` voxels of every class in (B, X, Y, Z) int64 labels, drawn at random."""
    flat = label.reshape(-1).cpu()
    chosen = []
    for index in range(classes):
        found = torch.nonzero(flat == index)[:, 0]
        chosen.append(found[torch.randperm(len(found), generator=random)[:PLACES]])
    return torch.cat(chosen).to(label.device)


def _affinities(features: Tensor, places: Tensor) -> Tensor:
    rows = features.flatten(2).transpose(1, 2).flatten(0, 1)[places].float()
    unit = functional.normalize(rows - rows.mean(dim=0), dim=1)
    return unit @ unit.T
