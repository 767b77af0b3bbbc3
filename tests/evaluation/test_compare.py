"""Paired comparisons: the difference, its interval and its test."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from segdistill.evaluation.compare import compare_family, compare_paired, pairs
from segdistill.evaluation.members import Member


def member(name, role, width) -> Member:
    """A member without files."""
    return Member(name, role, width, 1, 1, Path(name))


FAMILY = (
    member("teacher", "teacher", 1.0),
    member("student-x4", "student", 0.25),
    member("control-x4", "control", 0.25),
    member("student-x8", "student", 0.125),
)


def compare(values, others, confidence=0.95, metric="dice"):
    """Compare two lists of figures."""
    return compare_paired(
        np.array(values, float),
        np.array(others, float),
        name="student",
        against="control",
        metric=metric,
        sites="seen",
        confidence=confidence,
        seed=1,
    )


def test_students_meet_their_control_and_the_teacher():
    """A student is compared with the control of its width, where there is one, and with the teacher."""
    assert list(pairs(FAMILY)) == [
        ("student-x4", "control-x4"),
        ("student-x4", "teacher"),
        ("student-x8", "teacher"),
    ]


def test_pairing_removes_what_subjects_share():
    """Subjects that differ by far more than the models do don't widen the interval."""
    hard = np.linspace(0.2, 0.9, 12)
    gain = np.tile([0.009, 0.010, 0.011], 4)
    found = compare(hard + gain, hard)
    assert found.difference == pytest.approx(0.010)
    assert 0.009 <= found.low < 0.010 < found.high <= 0.011
    assert found.better == found.subjects == 12


def test_no_difference_is_not_called_one():
    """Differences that go either way have an interval around zero."""
    found = compare([0.80, 0.81, 0.79, 0.80, 0.82, 0.78], [0.81, 0.80, 0.80, 0.79, 0.80, 0.80])
    assert found.low < 0 < found.high


def test_interval_narrows_with_less_confidence():
    """An interval of 50% lies inside that of 95%."""
    values, others = [0.80, 0.84, 0.79, 0.86, 0.82, 0.81], [0.78, 0.80, 0.80, 0.81, 0.80, 0.80]
    wide, narrow = compare(values, others), compare(values, others, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_swapping_the_two_turns_the_sign():
    """What one gains the other loses."""
    values, others = [0.80, 0.84, 0.79, 0.86], [0.78, 0.80, 0.80, 0.81]
    assert compare(values, others).difference == -compare(others, values).difference


def test_ratio_is_retention():
    """The ratio is one mean over the other, with an interval around it."""
    found = compare([0.80, 0.85, 0.78] * 2, [0.82, 0.86, 0.80] * 2)
    assert found.ratio == pytest.approx(2.43 / 2.48, abs=1e-5)
    assert found.ratio_low <= found.ratio <= found.ratio_high


def test_constant_difference_has_a_point_as_interval():
    """When every subject differs by the same, so does every resample."""
    found = compare([0.5, 0.75, 0.25] * 2, [0.25, 0.5, 0.0] * 2)
    assert (found.low, found.high) == (0.25, 0.25)


def test_equal_models_differ_by_nothing():
    """Identical figures are no evidence of a difference."""
    found = compare([0.5, 0.7, 0.9] * 2, [0.5, 0.7, 0.9] * 2)
    assert (found.difference, found.low, found.high, found.better) == (0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize("subjects", [1, 2, 5])
def test_few_subjects_have_no_interval(subjects):
    """Fewer than six subjects say how much, never how sure."""
    found = compare(np.linspace(0.80, 0.81, subjects), np.linspace(0.70, 0.72, subjects))
    assert found.difference == pytest.approx(0.1, abs=0.01)
    assert found.low is found.high is found.ratio_low is found.ratio_high is None


def test_a_subject_without_anything_found_leaves_the_ratio_unsure():
    """Where the other member has 0 in a subject, the ratio has no interval; the difference has one."""
    found = compare([0.8, 0.7, 0.8, 0.7, 0.8, 0.1], [0.7, 0.8, 0.7, 0.8, 0.7, 0.0])
    assert found.ratio == pytest.approx(3.9 / 3.7, abs=1e-5)
    assert found.ratio_low is found.ratio_high is None
    assert found.low < found.difference < found.high


def test_subjects_are_the_unit():
    """Two scans of a subject count once, as their mean, and held-out sites are compared apart."""
    rows = []
    for name, shift in (("teacher", 0.0), ("student-x4", -0.1), ("control-x4", -0.2), ("student-x8", 0)):
        for case, subject, held_out, dice in (
            ("a1", "a", False, 0.8),
            ("a2", "a", False, 0.6),
            ("b1", "b", False, 0.9),
            ("c1", "c", True, 0.5),
        ):
            rows.append((name, "s", held_out, case, subject, "it", dice + shift, 0.5, 1.0))
    columns = ["model", "site", "held_out", "case", "subject", "structure", "dice", "nsd", "hd95_mm"]
    found = {
        (c.name, c.against, c.metric, c.sites): c
        for c in compare_family(FAMILY, pd.DataFrame(rows, columns=columns), 0.95, 1)
    }
    seen = found["student-x4", "control-x4", "dice", "seen"]
    assert seen.subjects == 2
    assert found["student-x4", "control-x4", "dice", "held_out"].subjects == 1
    assert seen.difference == pytest.approx(0.1)
    teacher = found["student-x4", "teacher", "dice", "seen"]
    assert teacher.ratio == pytest.approx((0.6 + 0.8) / (0.7 + 0.9), abs=1e-5)
    assert found["student-x4", "teacher", "hd95_mm", "seen"].difference == 0.0


def test_a_shorter_distance_is_better():
    """For HD95 the lower figure wins, on a subject and for sure."""
    values, others = [1.0, 1.1, 0.9, 1.0, 1.2, 1.1], [2.0, 2.2, 2.1, 1.9, 2.3, 2.0]
    found = compare(values, others, metric="hd95_mm")
    assert found.better == 6
    assert found.surely_better
    assert not compare(others, values, metric="hd95_mm").surely_better
    assert not compare(values, others, metric="dice").surely_better


def test_sure_needs_the_whole_interval():
    """A mean gain whose interval reaches over zero, or that has no interval, is not a sure one."""
    values = [0.80, 0.84, 0.79, 0.86, 0.82, 0.81]
    assert compare(values, [0.79, 0.83, 0.78, 0.84, 0.81, 0.80]).surely_better
    assert not compare(values, [0.79, 0.86, 0.76, 0.86, 0.84, 0.80]).surely_better
    assert not compare([0.8], [0.7]).surely_better
