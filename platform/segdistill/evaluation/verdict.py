"""The two questions a student must answer, and where it loses most."""

from collections.abc import Sequence

import pandas as pd

from segdistill.evaluation.compare import DECIMALS, Comparison
from segdistill.evaluation.members import Member
from segdistill.evaluation.summary import site_scores, structure_scores
from segdistill.family import Verdict


def judge(
    family: Sequence[Member], card: pd.DataFrame, comparisons: Sequence[Comparison], margin: float
) -> dict[str, Verdict]:
    """A verdict per student, by its name.

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
    verdicts = {}
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
        verdicts[member.name] = Verdict(
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
