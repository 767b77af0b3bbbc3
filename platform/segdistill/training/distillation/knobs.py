"""The knobs of distillation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from segdistill.params import Positive, Weight


@dataclass(frozen=True)
class DistillationKnobs:
    """The ``distillation`` part of params.yaml.

    Attributes:
        inherit: whether a student starts from its teacher's features.
        teaching: ``stored`` (soft labels worked out once on the whole scan, augmented along with the
            patch) or ``live`` (a forward pass of the teacher on the student's own
            augmented patch).
        logit_weight: of the term in ``logit.py``.
        region_weight: of the term in ``region.py``; needs ``live``.
        context_weight: of the term in ``context.py``; needs ``live``.
        temperature: softens both networks' classes in the logit term.
        warm_up_steps: of a student, before the distillation terms enter its loss.
    """

    inherit: bool
    teaching: Literal["stored", "live"]
    logit_weight: Weight
    region_weight: Weight
    context_weight: Weight
    temperature: Positive
    warm_up_steps: Annotated[int, Field(ge=0)]

    def __post_init__(self) -> None:
        if self.teaching == "stored" and (self.region_weight or self.context_weight):
            raise ValueError(
                "has a region_weight or context_weight, which need the teacher's features: set teaching "
                "to live"
            )

    @property
    def has_terms(self) -> bool:
        """Whether any distillation term has a weight."""
        return bool(self.logit_weight or self.region_weight or self.context_weight)

    @property
    def needs_soft_labels(self) -> bool:
        """Whether every patch needs its stored soft labels, not only those of unlabelled cases."""
        return self.has_terms and self.teaching == "stored"
