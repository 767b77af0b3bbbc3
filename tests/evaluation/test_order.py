"""Widths whose scores are in the wrong order."""

from pathlib import Path

import pytest

from segdistill.evaluation.order import out_of_order
from segdistill.family import write_family
from segdistill.files import write_json
from tests.figures import TEACHER, control, student
from tools.readme_table import results


def test_a_wider_one_below_a_narrower_one_is_told() -> None:
    """Each role apart, against the best narrower one, with how long both were trained."""
    family = [
        TEACHER,
        student(name="student-x2", width=0.5, dice=0.80),
        control(name="control-x2", width=0.5, dice=0.70),
        student(name="student-x4", width=0.25, dice=0.79),
        control(name="control-x4", width=0.25, dice=0.81),
        control(name="control-x8", width=0.125, dice=0.72),
    ]
    steps = {"control-x2": 300, "control-x4": 700}
    (line,) = out_of_order(family, [{"name": name, "steps": count} for name, count in steps.items()])
    assert line == (
        "control-x2 is wider than control-x4 and scores 11.0 points less (0.7000 against 0.8100 Dice). "
        "It was trained for 300 steps against 700: this isn't a comparison of widths."
    )


@pytest.mark.parametrize(
    ("steps", "says"),
    [({"student-x2": 700, "student-x4": 700}, "don't explain it"), ({"student-x2": 700}, "isn't known")],
)
def test_the_reason_is_not_made_up(steps: dict[str, int], says: str) -> None:
    """With as many steps, or none known, the sentence says that."""
    family = [
        student(name="student-x2", width=0.5, dice=0.80),
        student(name="student-x4", width=0.25, dice=0.81),
    ]
    (line,) = out_of_order(family, [{"name": name, "steps": count} for name, count in steps.items()])
    assert says in line


def test_the_readme_says_it(tmp_path: Path) -> None:
    """The block of results has the sentence."""
    family = [TEACHER, control(name="control-x2", width=0.5, dice=0.1), control(dice=0.2)]
    write_family(tmp_path / "family.json", family)
    write_json(tmp_path / "comparisons.json", [])
    write_json(tmp_path / "unseen.json", {"cases": [], "models": []})
    said = [line for line in results(tmp_path) if "control-x2 is wider than control-x4" in line]
    assert len(said) == 1
