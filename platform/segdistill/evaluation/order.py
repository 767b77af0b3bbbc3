"""Wider members that score below narrower ones: a reader must be told, and why if it is known."""

from collections.abc import Mapping, Sequence
from typing import Any

from segdistill.family import Figures


def out_of_order(family: Sequence[Figures], pace: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each student and control whose mean Dice is below that of a narrower one.

    It is compared with the best of the narrower ones of its role, on the sites seen in training.

    Args:
        family: the figures of every member.
        pace: what :func:`~segdistill.evaluation.summary.training_pace` gives, for their steps.
    """
    steps = {row["name"]: row["steps"] for row in pace}
    lines = []
    for row in family:
        narrower = [
            other
            for other in family
            if other.role == row.role and other.width < row.width and other.dice > row.dice
        ]
        if row.role == "teacher" or not narrower:
            continue
        best = max(narrower, key=lambda other: other.dice)
        lines.append(
            f"{row.name} is wider than {best.name} and scores {100 * (best.dice - row.dice):.1f} points "
            f"less ({row.dice:.4f} against {best.dice:.4f} Dice). {_why(row.name, best.name, steps)}"
        )
    return lines


def _why(wider: str, narrower: str, steps: Mapping[str, int]) -> str:
    """What is known about the reason: how long both were trained."""
    if not {wider, narrower} <= set(steps):
        return "How long they were trained isn't known."
    trained = f"{steps[wider]:,} steps against {steps[narrower]:,}"
    if steps[wider] < steps[narrower]:
        return f"It was trained for {trained}: this isn't a comparison of widths."
    return f"It was trained for {trained}, so its steps don't explain it; its learning rate may."
