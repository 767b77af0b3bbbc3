"""What is concluded about a student from its comparisons."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from segdistill.evaluation.compare import compare_family
from segdistill.evaluation.members import Member
from segdistill.evaluation.verdict import judge
from segdistill.family import Verdict

FAMILY = (
    Member("teacher", "teacher", 1.0, 1, 1, Path("teacher")),
    Member("student-x4", "student", 0.25, 1, 1, Path("student-x4")),
    Member("control-x4", "control", 0.25, 1, 1, Path("control-x4")),
)
WOBBLE = (0.000, 0.001, -0.001, 0.002, -0.002, 0.001)


def card(student: float, control: float, held_out: float = 0.0, hd95: float = 0.0) -> pd.DataFrame:
    """Six seen subjects and six of a held-out site, with two structures, the teacher at Dice 0.8.

    Args:
        student: what the student's Dice is above the teacher's.
        control: what the control's is.
        held_out: what the student's is above the control's on the held-out site.
        hd95: what the student's HD95 is above the control's, mm, on seen sites.
    """
    shift = {"teacher": 0.0, "student-x4": student, "control-x4": control}
    rows = []
    for name, gain in shift.items():
        for number, wobble in enumerate(WOBBLE):
            own = gain + (wobble if name == "student-x4" else 0.0)
            distance = 2.0 + (hd95 + wobble if name == "student-x4" else 0.0)
            for structure, level in (("big", 0.9), ("small", 0.7)):
                much = own * (1.5 if structure == "small" else 0.5)
                rows.append(
                    (name, f"site_{number % 2}", False, f"s{number}", structure, level + much, distance)
                )
                far = (held_out + wobble) if name == "student-x4" else 0.0
                rows.append((name, "away", True, f"u{number}", structure, level - 0.1 + far, 3.0))
    columns = ["model", "site", "held_out", "case", "structure", "dice", "hd95_mm"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(subject=table["case"], nsd=0.9)


def verdict(table: pd.DataFrame, margin: float = 0.013) -> Verdict:
    """The student's verdict."""
    (found,) = judge(FAMILY, table, compare_family(FAMILY, table, 0.95, 1), margin).values()
    return found


def test_a_small_loss_is_non_inferior_and_a_large_one_is_not() -> None:
    """The whole interval inside the margin: yes; with an end outside it: no."""
    assert verdict(card(student=-0.005, control=-0.05)).non_inferior
    assert not verdict(card(student=-0.02, control=-0.05)).non_inferior
    edge = card(student=-0.0100, control=-0.05)
    found = verdict(edge)
    assert found.retention_low is not None
    assert found.retention_low < 1 - 0.0125 + 0.0005
    assert not verdict(edge, margin=1 - found.retention_low).non_inferior
    assert verdict(edge, margin=1 - found.retention_low + 1e-4).non_inferior


def test_a_few_subjects_show_nothing() -> None:
    """With fewer than six seen subjects there is no interval, so non-inferiority isn't shown."""
    table = card(student=0.01, control=-0.05)
    assert verdict(table).non_inferior
    found = verdict(table[table["subject"] != "s5"])
    assert (found.retention_low, found.non_inferior, found.margin) == (None, False, 0.013)
    assert found.better_in == ()


def test_missing_a_hard_structure_does_not_better_hd95() -> None:
    """A student that misses the structure with the largest distances gains nothing by it."""
    table = card(student=-0.01, control=-0.01)
    small = table["structure"] == "small"
    table.loc[small, "hd95_mm"] += 10.0
    table.loc[small & (table["model"] == "student-x4"), "hd95_mm"] = np.nan
    pairs = [c for c in compare_family(FAMILY, table, 0.95, 1) if c.metric == "hd95_mm"]
    assert {c.name for c in pairs} == {"student-x4"}
    assert all(abs(c.difference) < 0.01 for c in pairs)


@pytest.mark.parametrize(
    ("table", "better_in"),
    [
        (card(student=-0.01, control=-0.03), ("dice",)),
        (card(student=-0.01, control=-0.01, held_out=0.02), ("dice_held_out_site",)),
        (card(student=-0.01, control=-0.01, hd95=-0.5), ("hd95_mm",)),
        (card(student=-0.01, control=-0.01), ()),
    ],
)
def test_one_sure_gain_beats_the_control(table: pd.DataFrame, better_in: tuple[str, ...]) -> None:
    """Dice, Dice on the held-out site or HD95: one is enough, none is not."""
    found = verdict(table)
    assert found.better_in == better_in
    assert found.beats_control is bool(better_in)


def test_a_sure_loss_of_dice_is_not_made_up_for() -> None:
    """A student with shorter distances and a surely lower Dice than its control hasn't beaten it."""
    found = verdict(card(student=-0.03, control=-0.01, hd95=-0.5))
    assert found.better_in == ("hd95_mm",)
    assert found.beats_control is False


def test_the_worst_structure_and_site_are_named() -> None:
    """Where the student loses most, with the loss against the teacher."""
    found = verdict(card(student=-0.02, control=-0.02, held_out=-0.05))
    assert (found.worst_structure, found.worst_site) == ("small", "away")
    assert found.worst_structure_loss == pytest.approx(0.03, abs=1e-3)
    assert found.worst_site_loss == pytest.approx(0.05, abs=1e-3)


def test_without_a_control_nothing_is_said_about_it() -> None:
    """A family without controls has no answer to whether distillation added anything."""
    table = card(student=-0.005, control=0.0)
    table = table[table["model"] != "control-x4"]
    (found,) = judge(FAMILY[:2], table, compare_family(FAMILY[:2], table, 0.95, 1), 0.013).values()
    assert found.beats_control is None
