"""When the learning rate rises, is constant and falls, and the rule that ends the constant phase.

Warm-up, constant, decay: Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed
Training Durations", arXiv 2405.18392, find that it reaches what a cosine of the same length does. A
cosine must know its length from the start; here the decay may begin when validation has become flat.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segdistill.training.knobs import TrainingKnobs

Phase = Literal["warm-up", "constant", "decay"]
_LEAST = 1e-3  # of the peak: what the decay ends at


@dataclass(frozen=True)
class Schedule:
    """The phases of a training, as far as it is known how they end.

    Attributes:
        warm_up_until: step until which the learning rate rises in a line.
        constant_until: step until which it is at its peak; before the rule has spoken, at the latest.
        steps: of the whole training, the decay along a cosine to nearly 0 included.
        full_from: step from which patches have the plan's size.
        flat: whether validation became flat; else the steps decide, or will.
    """

    warm_up_until: int
    constant_until: int
    steps: int
    full_from: int
    flat: bool

    @classmethod
    def of(cls, knobs: TrainingKnobs, steps: int, history: Sequence[Mapping[str, Any]]) -> "Schedule":
        """The schedule of a training that has come as far as its learning curve says.

        It follows from the curve alone, so a training that goes on from a checkpoint, which holds the
        curve, decides what it would have decided.

        Args:
            knobs: of the training.
            steps: the most that it may take.
            history: rows of its learning curve, with ``step`` and ``val_dice``.
        """
        constant = latest_decay(knobs, steps)
        flat = flat_at(knobs, [row for row in history if row["step"] < constant])
        if flat is not None:
            decay = max(1, round(flat * knobs.decay_share / (1 - knobs.decay_share)))
            constant, steps = flat, min(steps, flat + decay)
        full_from = steps - round(knobs.full_share * steps)
        return cls(min(knobs.warm_up_steps, constant), constant, steps, full_from, flat is not None)

    def phase(self, step: int) -> Phase:
        """The phase that a step, counted from 0, belongs to."""
        return (
            "warm-up"
            if step < self.warm_up_until
            else "constant"
            if step < self.constant_until
            else "decay"
        )

    def rate(self, step: int, peak: float) -> float:
        """The learning rate of a step."""
        if step < self.warm_up_until:
            return peak * (step + 1) / self.warm_up_until
        if step < self.constant_until:
            return peak
        done = (step - self.constant_until) / (self.steps - self.constant_until)
        return peak * max(_LEAST, 0.5 * (1 + math.cos(math.pi * done)))

    def known_until(self, step: int, knobs: TrainingKnobs) -> int:
        """The step after ``step`` at which the schedule may become another one; the end, if none."""
        if self.flat or not knobs.patience or step >= self.constant_until:
            return self.steps
        return min(self.constant_until, step - step % knobs.validate_steps + knobs.validate_steps)

    def record(self) -> dict[str, Any]:
        """What the trained model's record says of it."""
        why = "validation was flat" if self.flat else "the steps were used up"
        return {
            "warm_up_until": self.warm_up_until,
            "constant_until": self.constant_until,
            "steps": self.steps,
            "why": why,
        }


def latest_decay(knobs: TrainingKnobs, steps: int) -> int:
    """The step at which the decay begins at the latest, in a training of at most so many steps."""
    return max(min(knobs.warm_up_steps, steps), steps - round(knobs.decay_share * steps))


def flat_at(knobs: TrainingKnobs, history: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the first validation at which the last ``patience`` ones brought nothing; else None.

    Nothing: the best of them is no more than ``flat`` Dice above the best before them.
    """
    scores = [(row["step"], row["val_dice"]) for row in history if row["val_dice"] is not None]
    dice = [score for _, score in scores]
    for count in range(knobs.patience + 1, len(dice) + 1):
        recent = count - knobs.patience
        if knobs.patience and max(dice[recent:count]) <= max(dice[:recent]) + knobs.flat:
            return int(scores[count - 1][0])
    return None
