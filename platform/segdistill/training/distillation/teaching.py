"""The distillation terms of a student's loss, with the weights of params.yaml."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segdistill.network.unet import UNet
from segdistill.training.distillation.context import context_loss, places_by_class
from segdistill.training.distillation.knobs import DistillationKnobs
from segdistill.training.distillation.logit import logit_loss, softened
from segdistill.training.distillation.region import region_loss
from segdistill.training.distillation.soft_labels import expand
from segdistill.training.losses import at_level, level_shares


class FeatureTap:
    """Keeps what the levels of a network's decoder gave in its last pass, finest first."""

    def __init__(self, network: UNet) -> None:
        levels = [*reversed(list(network.body.upsamples)), network.body.bottleneck]
        self._kept: list[Tensor | None] = [None] * len(levels)
        self.channels = network.architecture.channels
        for index, level in enumerate(levels):
            level.register_forward_hook(self._hook(index))

    def _hook(self, index: int) -> Any:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            self._kept[index] = output

        return keep

    def take(self) -> list[Tensor]:
        """The features (B, C_l, x, y, z) of the last pass, and nothing is kept any longer."""
        taken = [kept for kept in self._kept if kept is not None]
        self._kept = [None] * len(self._kept)
        return taken


class Teaching(nn.Module):
    """The weighted distillation terms. Their projections serve training alone.

    A student's features have fewer channels than its teacher's; a convolution of 1 x 1 x 1 per level
    and term brings them up. They are trained along and thrown away: the student's own architecture is
    untouched.
    """

    def __init__(self, knobs: DistillationKnobs, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.knobs = knobs

        def projections(weight: float) -> nn.ModuleList:
            pairs = zip(student, teacher, strict=True) if weight else ()
            return nn.ModuleList(nn.Conv3d(own, other, kernel_size=1) for own, other in pairs)

        self.region = projections(knobs.region_weight)
        self.context = projections(knobs.context_weight)

    def forward(
        self,
        levels: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        label: Tensor,
        seed: int,
    ) -> dict[str, Tensor]:
        """The terms that have a weight, each multiplied by it.

        Args:
            levels: the student's logits, finest first.
            features: the student's, finest first; empty if no term needs them.
            targets: the teacher's softened probabilities at the same levels, see
                :meth:`logit_targets`.
            teacher_features: the teacher's, finest first; empty if no term needs them.
            label: (B, X, Y, Z) int64 at the finest resolution.
            seed: of the voxels that the context term draws.
        """
        knobs, classes = self.knobs, levels[0].shape[1]
        terms: dict[str, Tensor] = {}
        if knobs.logit_weight:
            shares = level_shares(len(levels))
            parts = [
                share * logit_loss(own, target, knobs.temperature)
                for share, own, target in zip(shares, levels, targets, strict=True)
            ]
            terms["logit"] = knobs.logit_weight * torch.stack(parts).sum()
        if knobs.region_weight:
            terms["region"] = knobs.region_weight * _mean(
                region_loss(project(own.float()), theirs, at_level(label, own), classes)
                for project, own, theirs in zip(self.region, features, teacher_features, strict=True)
            )
        if knobs.context_weight:
            random = torch.Generator().manual_seed(seed)
            terms["context"] = knobs.context_weight * _mean(
                context_loss(
                    project(own.float()), theirs, places_by_class(at_level(label, own), classes, random)
                )
                for project, own, theirs in zip(self.context, features, teacher_features, strict=True)
            )
        return terms

    def logit_targets(
        self, levels: Sequence[Tensor], teacher_levels: Sequence[Tensor] | None, soft: Tensor | None
    ) -> list[Tensor]:
        """Targets of the logit term, from the teacher's logits or stored soft labels.

        Args:
            levels: the student's logits, finest first.
            teacher_levels: the teacher's on the same batch; None where soft labels are stored.
            soft: (B, 4, X, Y, Z) uint8, the stored soft labels; None where the teacher runs live.

        Stored soft labels are thinned out for the coarser levels, as the labels are.
        """
        if not self.knobs.logit_weight:
            return []
        if teacher_levels is not None:
            return [softened(logits, self.knobs.temperature) for logits in teacher_levels]
        assert soft is not None  # noqa: S101 - the sampler gives them to every student
        return [
            expand(at_level(soft, logits), logits.shape[1], self.knobs.temperature) for logits in levels
        ]


def _mean(terms: Any) -> Tensor:
    values: Tensor = torch.stack(list(terms)).mean()
    return values
