"""The results in the documents: every figure from the committed reports."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from segdistill.evaluation.compare import Comparison
from segdistill.files import SegdistillError
from tests.figures import TEACHER, VERDICT, control, student
from tools.readme_table import (
    END,
    PAGES,
    START,
    comparison_lines,
    family_lines,
    real_scans_line,
    results,
    verdict_lines,
    with_block,
)

ROOT = Path(__file__).resolve().parents[2]
FAMILY = [TEACHER, student(), control()]
PAIR = Comparison(
    name="student-x4",
    against="control-x4",
    metric="dice",
    sites="seen",
    subjects=10,
    difference=0.01234,
    low=0.004,
    high=0.02,
    confidence=0.95,
    better=9,
    ratio=None,
    ratio_low=None,
    ratio_high=None,
)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_of_results_are_the_evaluations(page: Path) -> None:
    """The results in the README and in the page of the CT are those that the committed reports give."""
    own_run = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "reports"], cwd=ROOT, check=False)
    if own_run.returncode:
        pytest.skip("reports/ holds another run than the committed one")
    text = (ROOT / page).read_text()
    task = yaml.safe_load((ROOT / PAGES[page]).read_text())["task"]
    assert with_block(text, results(ROOT / "reports" / task)) == text


def test_readme_table_shows_what_is_saved() -> None:
    """The table has every member's figures, what it saves of the teacher's, and none where none is."""
    lines = family_lines([TEACHER, student()])
    assert "| teacher | 5,000,000 | 0.8875 | 0.7500 | 0.9000 | 2.35 | 100.00% | 4.00 |" in lines
    saved = "| student-x4 | 312,500 (-93.8%) | 0.8875 | none | 0.9000 | 2.35 | 98.77% | 1.00 (-75.0%) |"
    assert saved in lines


def test_readme_says_what_distillation_added() -> None:
    """Each student stands against its control on seen sites only, with interval and wins."""
    others = [
        replace(PAIR, sites="held_out"),
        replace(PAIR, against="teacher"),
        replace(PAIR, metric="hd95_mm"),
    ]
    assert comparison_lines(FAMILY, [*others, PAIR]) == [
        "- student-x4 minus control-x4, paired: +0.0123 Dice (95% interval +0.0040 to +0.0200); "
        "higher on 9 of 10 subjects"
    ]


def test_readme_says_where_a_student_fails() -> None:
    """Whether it is shown to be as good as the teacher, and its worst structure and site."""
    apart = replace(
        PAIR,
        against="teacher",
        sites="held_out",
        ratio=0.98848,
        ratio_low=0.97737,
        ratio_high=0.99262,
    )
    (line,) = verdict_lines(FAMILY, [PAIR, apart])
    assert line == (
        "- student-x4: not shown to be non-inferior to the teacher on the seen sites (retention 98.77%, "
        "interval begins at 98.01%; held-out site: 98.85%, interval 97.74% to 99.26%). Largest losses: "
        "basal ganglia (-3.2 points), site_c (-1.5 points)"
    )
    as_good = student(verdict=replace(VERDICT, non_inferior=True))
    (line,) = verdict_lines([TEACHER, as_good], [PAIR])
    assert line.startswith("- student-x4: non-inferior to the teacher on the seen sites (")
    assert "held-out" not in line
    few = student(verdict=replace(VERDICT, retention_low=None))
    (line,) = verdict_lines([TEACHER, few], [PAIR])
    assert line.startswith("- student-x4: not shown to be non-inferior to the teacher")
    assert "(retention 98.77%, no interval)" in line


def test_readme_tells_of_the_real_scans() -> None:
    """One line has every member's Dice on the scans that no training saw."""
    unseen = {
        "cases": [{"case": "s1"}, {"case": "s2"}],
        "models": [{"name": "teacher", "dice": 0.80862}, {"name": "student-x4", "dice": 0.79}],
    }
    assert real_scans_line(unseen) == (
        "- Dice on real scans that no training saw (s1, s2): teacher 0.8086, student-x4 0.7900"
    )


def test_readme_block_replaces_only_itself() -> None:
    """Writing the block keeps all around it, and writing it again changes nothing."""
    text = f"before\n{START}\nold\n{END}\nafter\n"
    once = with_block(text, family_lines([TEACHER]))
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert with_block(once, family_lines([TEACHER])) == once


@pytest.mark.parametrize("text", ["no markers", END + START, START + END + START + END])
def test_readme_block_needs_its_markers(text: str) -> None:
    """A README without the two markers, once and in order, is refused and not guessed at."""
    with pytest.raises(SegdistillError, match=r"README\.md"):
        with_block(text, [])
