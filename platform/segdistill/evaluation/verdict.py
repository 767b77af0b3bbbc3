"""The two questions a student must answer, and where it loses most."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from segdistill.evaluation.compare import DECIMALS, Comparison
from segdistill.evaluation.members import Member
from segdistill.evaluation.summary import site_scores, structure_scores


@dataclass(frozen=True)
class Verdict:
    """What the comparisons say about a student.

    Attributes:
        name: the student.
        retention_low: lower end of the interval of its retention on seen sites; None with fewer than
            six subjects, or where the teacher finds nothing in one of them.
        margin: share of the teacher's Dice that it may lose.
        confidence: coverage of the interval.
        non_inferior: whether ``retention_low`` is above 1 - margin: what it loses against the teacher
            stays inside the margin, whichever subjects were drawn.
        beats_control: whether it is surely better than its control in Dice or HD95 on seen sites, or in
            Dice on held-out sites, and surely worse in neither Dice; None without a control.
        better_in: in which of them it is surely better.
        worst_structure: the structure whose mean Dice loses most against the teacher's, seen sites.
        worst_structure_loss: that loss, a fraction of 1; negative where even the worst one gains.
        worst_site: the site, held-out ones included, whose mean Dice loses most.
        worst_site_loss: that loss.
    """

    name: str
    retention_low: float | None
    margin: float
    confidence: float
    non_inferior: bool
    beats_control: bool | None
    better_in: tuple[str, ...]
    worst_structure: str
    worst_structure_loss: float
    worst_site: str
    worst_site_loss: float


def judge(
    family: Sequence[Member], card: pd.DataFrame, comparisons: Sequence[Comparison], margin: float
) -> list[Verdict]:
    """A verdict per student, in family order.

    Args:
        family: the members.
        card: the scorecard.
        comparisons: of :func:`~segdistill.evaluation.compare.compare_family`.
        margin: share of the teacher's Dice that a student may lose, fixed before the test set is seen.
    """
    teacher = next(member.name for member in family if member.role == "teacher")
    structures = structure_scores(card)
    by_structure = _losses(structures[~structures["held_out"]], "structure", teacher)
    by_site = _losses(site_scores(card), "site", teacher)
    verdicts = []
    for member in family:
        if member.role != "student":
            continue
        own = [c for c in comparisons if c.name == member.name]
        retention = next(c for c in own if _is(c, "dice", "seen") and c.against == teacher)
        low = retention.ratio_low
        others = [c for c in own if c.against != teacher]
        better_in = tuple(
            key
            for key, metric, sites in _MEASURES
            for c in others
            if _is(c, metric, sites) and c.surely_better
        )
        worse = any(c.metric == "dice" and c.high is not None and c.high < 0 for c in others)
        structure, site = by_structure[member.name], by_site[member.name]
        verdicts.append(
            Verdict(
                name=member.name,
                retention_low=low,
                margin=margin,
                confidence=retention.confidence,
                non_inferior=low is not None and low > 1 - margin,
                beats_control=bool(better_in) and not worse if others else None,
                better_in=better_in,
                worst_structure=str(structure.idxmax()),
                worst_structure_loss=round(float(structure.max()), DECIMALS),
                worst_site=str(site.idxmax()),
                worst_site_loss=round(float(site.max()), DECIMALS),
            )
        )
    return verdicts


#: What counts for beating a control, and how people call it.
MEASURE_NAMES = {
    "dice": "Dice",
    "dice_held_out_site": "Dice on the held-out site",
    "hd95_mm": "HD95",
}
_MEASURES = (
    ("dice", "dice", "seen"),
    ("dice_held_out_site", "dice", "held_out"),
    ("hd95_mm", "hd95_mm", "seen"),
)


def _is(comparison: Comparison, metric: str, sites: str) -> bool:
    return comparison.metric == metric and comparison.sites == sites


def _losses(scores: pd.DataFrame, by: str, teacher: str) -> pd.DataFrame:
    """The teacher's mean Dice minus the model's: a column per model, a row per structure or site."""
    wide = scores.pivot_table(index=by, columns="model", values="dice")
    return wide.rsub(wide[teacher], axis=0)
