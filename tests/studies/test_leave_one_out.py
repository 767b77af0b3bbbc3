"""A site left out: what training sees then, and how both families are compared on it."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from segdistill.evaluation.members import Member, TestCase, TestSet
from segdistill.files import SegdistillError
from segdistill.sites.manifest import Case, Site
from segdistill.sites.prepare import hold_out, usable_cases
from segdistill.studies.leave_one_out import FULL, WITHOUT, both, only_site, summarise

MEMBER = Member("student-x4", "student", 0.25, 100, 1000, Path("bundle"))


def _site(name: str) -> tuple[Path, Site]:
    cases = tuple(
        Case(f"{name}-{split}", f"{name}-{split}", "image.nii", "label.nii", split)
        for split in ("train", "val", "test")
    )
    return Path(name), Site(name, "balls", True, False, "test", {1: "ball"}, cases)


def _test_set() -> TestSet:
    cases = tuple(
        TestCase(f"{site}-test", f"{site}-test", site, site == "c", Path("i.nii"), Path("l.nii"))
        for site in ("a", "b", "c")
    )
    return TestSet(cases, {1: "ball"}, ("a", "b", "c"), ("c",), (), 0)


def _card(dices: list[float], site: str = "b") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": "student-x4",
                "role": "student",
                "width": 0.25,
                "site": site,
                "held_out": True,
                "case": f"{site}-{number}",
                "subject": f"{site}-{number}",
                "structure": "ball",
                "dice": dice,
                "nsd": dice,
                "hd95_mm": 10 * (1 - dice),
                "volume_ml": 1.0,
                "reference_ml": 1.0,
            }
            for number, dice in enumerate(dices)
        ]
    )


def test_no_case_of_a_site_left_out_is_trained_on() -> None:
    """Training sees every other site's cases as before, and none of the site left out."""
    sites = [_site(name) for name in "abc"]
    kept = [entry.case.case for entry in usable_cases(hold_out(sites, ["b"]))]
    assert kept == [case for case in (e.case.case for e in usable_cases(sites)) if case[0] != "b"]
    assert len(kept) == 4


def test_an_unknown_site_is_not_left_out() -> None:
    """A name that no site has is refused, with the names there are."""
    with pytest.raises(SegdistillError, match="a, b, c"):
        hold_out([_site(name) for name in "abc"], ["d"])


def test_only_the_sites_own_test_cases_are_scored() -> None:
    """The cases are the site's, and count as of a site that was never seen."""
    own = only_site(_test_set(), "b")
    assert [(case.case, case.held_out) for case in own.cases] == [("b-test", True)]
    for name, said in (("c", "held out of the whole family"), ("d", "no labelled test case")):
        with pytest.raises(SegdistillError, match=said):
            only_site(_test_set(), name)


def test_both_families_are_compared_on_the_same_subjects() -> None:
    """The difference is the mean over subjects of one family minus the other, with an interval."""
    without, trained_with = [0.7, 0.72, 0.68, 0.75, 0.71, 0.69], [0.8, 0.81, 0.8, 0.82, 0.8, 0.8]
    full = pd.concat([_card([0.1] * 3, "a"), _card(trained_with).iloc[::-1]]).assign(held_out=False)
    card = both(_card(without), full)
    assert card["trained_on"].tolist() == [WITHOUT] * 6 + [FULL] * 6
    assert card[card["trained_on"] == FULL]["dice"].tolist() == trained_with
    summary = summarise(card, [MEMBER], site="b", confidence=0.95, seed=1)
    assert (summary["cases"], summary["subjects"]) == (6, 6)
    (row,) = summary["members"]
    assert row["dice"] == pytest.approx(sum(without) / 6, abs=1e-5)
    assert row["dice_full"] == pytest.approx(sum(trained_with) / 6, abs=1e-5)
    dice, distance = row["comparisons"]
    assert dice["difference"] == pytest.approx(row["dice"] - row["dice_full"], abs=2e-5)
    assert dice["low"] < dice["difference"] < dice["high"] < 0
    assert dice["better"] == 0
    assert distance["metric"] == "hd95_mm"
    assert distance["difference"] > 0


def test_few_subjects_get_no_interval() -> None:
    """With five subjects or fewer the difference stands alone."""
    card = both(_card([0.7, 0.6]), _card([0.8, 0.8]))
    (row,) = summarise(card, [MEMBER], site="b", confidence=0.95, seed=1)["members"]
    for comparison in row["comparisons"]:
        assert comparison["subjects"] == 2
        assert comparison["low"] is comparison["high"] is None


def test_a_case_that_the_full_family_lacks_stops_the_comparison() -> None:
    """A case or member that only one family was scored on is named, not dropped."""
    with pytest.raises(SegdistillError, match="student-x4 on b-1"):
        both(_card([0.7, 0.6]), _card([0.8]))
    other = replace(MEMBER, name="teacher").name
    with pytest.raises(SegdistillError, match="teacher on b-0"):
        both(_card([0.7]).assign(model=other), _card([0.8]))
