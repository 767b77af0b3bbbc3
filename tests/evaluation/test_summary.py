"""How rows become the family table."""

from pathlib import Path

import pandas as pd
import pytest

from segdistill.evaluation.members import Member
from segdistill.evaluation.score import DECIMALS, read_scorecard, write_table
from segdistill.evaluation.summary import family_table, site_scores, structure_scores
from segdistill.files import SegdistillError

NAN = float("nan")
FAMILY = (
    Member("teacher", "teacher", 1.0, 1000, 5000, Path("teacher")),
    Member("student-x4", "student", 0.25, 70, 400, Path("student-x4")),
)
ERRORS = {"teacher": 0.05, "student-x4": 0.06}
MEMORY = pd.DataFrame({"model": ["teacher", "student-x4"], "peak_rss_mb": [300.0, 200.0]})


def card(rows) -> pd.DataFrame:
    """A scorecard of (model, site, held_out, case, structure, dice, nsd, hd95)."""
    table = pd.DataFrame(
        rows, columns=["model", "site", "held_out", "case", "structure", "dice", "nsd", "hd95_mm"]
    )
    return table.assign(
        role="teacher", width=1.0, subject=table["case"], volume_ml=1.0, reference_ml=1.0
    )[["model", "role", "width", "site", "held_out", "case", "subject", "structure", *DECIMALS]]


def timings(cpu) -> pd.DataFrame:
    """Timing rows from model -> one CPU time of the network per case; reading takes 0.5 s more."""
    rows = [
        (model, f"c{number}", step, seconds, seconds)
        for model, times in cpu.items()
        for number, network in enumerate(times)
        for step, seconds in (("read", 0.5), ("network", network))
    ]
    return pd.DataFrame(rows, columns=["model", "case", "step", "wall_s", "cpu_s"])


ROWS = [
    ("teacher", "a", False, "a1", "big", 0.9, 0.9, 1.0),
    ("teacher", "a", False, "a1", "small", 0.7, 0.7, 3.0),
    ("teacher", "a", False, "a2", "big", 0.6, 0.6, 5.0),
    ("teacher", "a", False, "a2", "small", NAN, NAN, NAN),
    ("teacher", "z", True, "z1", "big", 0.5, 0.4, 9.0),
    ("teacher", "z", True, "z1", "small", 0.3, 0.2, 7.0),
    ("student-x4", "a", False, "a1", "big", 0.8, 0.8, 2.0),
    ("student-x4", "a", False, "a1", "small", 0.0, 0.0, NAN),
    ("student-x4", "a", False, "a2", "big", 0.6, 0.6, 5.0),
    ("student-x4", "a", False, "a2", "small", NAN, NAN, NAN),
    ("student-x4", "z", True, "z1", "big", 0.4, 0.4, 9.0),
    ("student-x4", "z", True, "z1", "small", 0.2, 0.2, 7.0),
]
TIMES = timings({"teacher": (3.0, 9.0, 4.0), "student-x4": (1.0, 0.9, 5.0)})


@pytest.fixture
def table():
    """The family table of the rows above, by name."""
    return {row.name: row for row in family_table(FAMILY, card(ROWS), TIMES, MEMORY, ERRORS, {})}


def test_dice_is_a_mean_over_structures_then_over_cases(table):
    """A case with fewer structures weighs as much as any: (0.8 + 0.6) / 2, not (0.9 + 0.7 + 0.6) / 3."""
    assert table["teacher"].dice == pytest.approx(0.7)
    assert table["teacher"].hd95_mm == pytest.approx((2.0 + 5.0) / 2)


def test_held_out_sites_stay_apart(table):
    """The held-out site has its own figures and no part in the others."""
    assert table["teacher"].dice_held_out_site == pytest.approx(0.4)
    assert table["teacher"].cases == 2
    assert table["teacher"].cases_held_out_site == 1


def test_retention_is_against_the_teacher_on_the_same_cases(table):
    """The teacher retains 1.0, a student its share of the teacher's Dice."""
    assert table["teacher"].retention == 1.0
    assert table["student-x4"].retention == pytest.approx(0.5 / 0.7, abs=1e-5)
    assert table["student-x4"].retention_held_out_site == pytest.approx(0.3 / 0.4)


def test_a_missed_structure_lowers_dice_and_is_counted(table):
    """Dice 0 enters the mean; its missing HD95 doesn't, and the count says so."""
    assert table["student-x4"].dice == pytest.approx((0.4 + 0.6) / 2)
    assert table["student-x4"].hd95_mm == pytest.approx((2.0 + 5.0) / 2)
    assert (table["teacher"].structures_missed, table["student-x4"].structures_missed) == (0, 1)


def test_cpu_seconds_are_the_median_of_whole_scans(table):
    """A scan's steps are added first, then the median is taken over cases."""
    assert table["teacher"].cpu_seconds == 4.5
    assert table["student-x4"].cpu_seconds == 1.5
    assert table["student-x4"].cpu_seconds_network == 1.0
    assert table["student-x4"].cpu_reduction == pytest.approx(1 - 1.5 / 4.5, abs=1e-5)
    assert table["student-x4"].parameter_reduction == 0.93


def test_a_family_without_a_held_out_site_says_none():
    """No held-out site is None, not a figure."""
    rows = [row for row in ROWS if not row[2]]
    found = family_table(FAMILY, card(rows), TIMES, MEMORY, ERRORS, {})
    assert found[0].dice_held_out_site is None
    assert found[1].retention_held_out_site is None


def test_a_member_without_timings_is_named():
    """A bundle that was never timed stops the table, by name."""
    with pytest.raises(SegdistillError, match="student-x4"):
        family_table(FAMILY, card(ROWS), timings({"teacher": (1.0,)}), MEMORY, ERRORS, {})


def test_scorecard_comes_back_as_written(tmp_path):
    """Writing, reading and writing again gives the same bytes, empty cells included."""
    write_table(tmp_path / "one.csv", card(ROWS), DECIMALS)
    write_table(tmp_path / "two.csv", read_scorecard(tmp_path / "one.csv"), DECIMALS)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert ",,,," in (tmp_path / "one.csv").read_text().replace("1.000", "")


def test_a_file_that_is_no_scorecard_is_named(tmp_path):
    """A scorecard without its columns is refused, and the missing ones are listed."""
    (tmp_path / "card.csv").write_text("model,dice\nteacher,0.5\n")
    with pytest.raises(SegdistillError, match="no column role"):
        read_scorecard(tmp_path / "card.csv")


def test_sites_and_structures_have_their_own_means():
    """A site's Dice is over its cases, a structure's over the cases that have it."""
    sites = site_scores(card(ROWS)).set_index(["model", "site"])
    assert sites.loc[("teacher", "a"), "dice"] == pytest.approx(0.7)
    assert sites.loc[("teacher", "a"), "cases"] == 2
    structures = structure_scores(card(ROWS)).set_index(["model", "held_out", "structure"])
    assert structures.loc[("teacher", False, "small"), "dice"] == pytest.approx(0.7)
    assert structures.loc[("teacher", False, "big"), "dice"] == pytest.approx(0.75)
