"""The knobs of a training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from segdistill.params import Count, Share, Weight


@dataclass(frozen=True)
class TrainingKnobs:
    """The ``training`` part of params.yaml, whose comments say what each does."""

    batch_size: Count
    full_share: Share
    small_patch_size: tuple[Count, Count, Count]
    small_batch_size: Count
    workers: Count
    weight_decay: Weight
    dice_weight: Weight
    ce_weight: Weight
    ema: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["bf16", "f32"]
    foreground_share: Share
    flip_left_right: bool
    checkpoint_steps: Count
    validate_steps: Count
    warm_up_steps: Count
    decay_share: Annotated[float, Field(gt=0, lt=1)]
    patience: Annotated[int, Field(ge=0)]
    flat: Weight

    def __post_init__(self) -> None:
        if self.decay_share < self.full_share < 1:
            raise ValueError(
                f"has full_share {self.full_share:g} above decay_share {self.decay_share:g}: full "
                "patches are of the decay alone (at most decay_share), or of all steps (1)"
            )
