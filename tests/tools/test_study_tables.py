"""The tables of docs/ablation.md."""

import subprocess
from pathlib import Path

import pytest
import yaml

from segdistill.files import SegdistillError
from tools.study_tables import NOT_RUN, PAGE, ablation_lines, left_out_lines, with_tables

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_the_studies() -> None:
    """The committed page has the tables that the committed figures give."""
    own_run = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "reports"], cwd=ROOT, check=False)
    if own_run.returncode:
        pytest.skip("reports/ holds another run than the committed one")
    task = yaml.safe_load((ROOT / "params.yaml").read_text())["task"]
    page = (ROOT / PAGE).read_text()
    assert with_tables(page, ROOT / "reports" / task) == page


def test_a_study_that_was_not_run_says_so(tmp_path: Path) -> None:
    """Without figures there is no table but a line that says so."""
    assert with_tables((ROOT / PAGE).read_text(), tmp_path).count(NOT_RUN) == 2


def test_a_page_without_its_markers_is_refused(tmp_path: Path) -> None:
    """The page is named, and nothing is guessed."""
    with pytest.raises(SegdistillError, match=r"docs/ablation\.md"):
        with_tables("nothing", tmp_path)


def test_the_ablations_table_shows_differences_and_the_choice() -> None:
    """A row shows budget, mean and spread, differences in points with intervals, and the choice."""
    line = {
        "row": "region_context",
        "label": "region context, equal time",
        "steps": 1500,
        "minutes": 12.34,
        "width": "x4",
        "mean": 0.76543,
        "sd": 0.0042,
        "against_control": {"mean": 0.0123, "low": 0.004, "high": 0.0206},
        "against_control_plateau": {"mean": -0.001, "low": None, "high": None},
        "against_start": None,
    }
    summary = {
        "task": "toy",
        "cases": 4,
        "seeds": [1, 2, 3],
        "subjects": 3,
        "unfinished": 0,
        "left_out": {"logit_stored": "there are none"},
        "rule": "The best.",
        "chosen": "region_context",
        "rows": [line],
    }
    lines = ablation_lines(summary)
    assert (
        "| x4 | region context, equal time | 1,500 | 12.3 | 0.7654 (0.0042) | +1.23 (+0.40 to +2.06) "
        "| -0.10 |  |"
    ) in lines
    assert "Left out: logit stored, as there are none." in lines
    assert lines[-1] == "The best. It chooses **region context**."


def test_an_unfinished_study_says_so() -> None:
    """With runs missing nothing is chosen, and the table says how many."""
    summary = {"task": "toy", "cases": 4, "subjects": 4, "seeds": [1], "rule": "The best."}
    lines = ablation_lines(summary | {"unfinished": 7, "left_out": {}, "chosen": None, "rows": []})
    assert "**Not finished: 7 runs are missing, nothing is chosen yet.**" in lines
    assert not any("The best." in line for line in lines)


def test_a_site_left_out_shows_an_interval_only_if_it_has_one() -> None:
    """With too few subjects the difference stands alone."""
    dice = {"metric": "dice", "difference": -0.02, "low": None, "high": None}
    member = {"name": "teacher", "dice": 0.8, "dice_full": 0.82, "comparisons": [dice]}
    site = {"site": "site_b", "subjects": 2, "members": [member]}
    assert left_out_lines([site])[-1] == ("| site_b | teacher | 2 | 0.8200 | 0.8000 | -2.00 |  |")
    dice |= {"low": -0.03, "high": -0.01}
    assert "-2.00 (-3.00 to -1.00)" in left_out_lines([site])[-1]
