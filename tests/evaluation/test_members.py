"""Who is evaluated, and on which cases."""

import json
from pathlib import Path

import pytest

from segdistill.evaluation.members import (
    TestCase,
    read_members,
    read_test_set,
    spread_over_sites,
    width_label,
)
from segdistill.files import SegdistillError
from segdistill.sites.manifest import Case, Site


def bundle(folder: Path, name: str, role: str, width: float, **changes) -> None:
    """A provenance file; nothing else of a bundle is read here."""
    body = {"name": name, "role": role, "width": width, "parameters": 10, "macs": 20, **changes}
    (folder / name).mkdir(parents=True)
    (folder / name / "provenance.json").write_text(json.dumps(body))


def site(folder: Path, name: str, held_out: bool = False, cases=(), **changes) -> None:
    """A manifest with cases of (name, split, labelled)."""
    Site(
        site=name,
        task="t",
        simulated=changes.pop("simulated", True),
        held_out=held_out,
        label_protocol="p",
        structures={1: "it"},
        cases=tuple(
            Case(
                case,
                f"s-{case}",
                f"images/{case}.nii",
                f"labels/{case}.nii" if labelled else None,
                split,
            )
            for case, split, labelled in cases
        ),
        **changes,
    ).write(folder / name)


def test_family_is_ordered_by_width_with_controls_beside(tmp_path):
    """The teacher leads, then each width with its student before its control."""
    for name, role, width in (
        ("control-x2", "control", 0.5),
        ("student-x8", "student", 0.125),
        ("teacher", "teacher", 1.0),
        ("control-x8", "control", 0.125),
        ("student-x2", "student", 0.5),
    ):
        bundle(tmp_path, name, role, width)
    names = [member.name for member in read_members(tmp_path)]
    assert names == ["teacher", "student-x2", "control-x2", "student-x8", "control-x8"]
    assert width_label(read_members(tmp_path)[3].width) == "1/8"


def test_what_is_half_made_belongs_to_no_family(tmp_path):
    """A hidden folder, as a killed process leaves, is no member."""
    bundle(tmp_path, "teacher", "teacher", 1.0)
    bundle(tmp_path, ".partial-x", "teacher", 1.0)
    assert [member.name for member in read_members(tmp_path)] == ["teacher"]


@pytest.mark.parametrize("teachers", [0, 2])
def test_a_family_has_one_teacher(tmp_path, teachers):
    """Without the teacher, or with two, retention has no meaning."""
    bundle(tmp_path, "student-x4", "student", 0.25)
    for number in range(teachers):
        bundle(tmp_path, f"teacher{number}", "teacher", 1.0)
    with pytest.raises(SegdistillError, match=f"{teachers} teachers"):
        read_members(tmp_path)


def test_provenance_without_parameters_is_named(tmp_path):
    """A provenance file that lacks a figure is refused by its path."""
    bundle(tmp_path, "teacher", "teacher", 1.0, parameters=None)
    with pytest.raises(SegdistillError, match=r"teacher/provenance\.json"):
        read_members(tmp_path)


def test_only_labelled_test_cases_are_scored(tmp_path):
    """Training and validation cases stay out, unlabelled ones are counted, held-out sites come last."""
    site(tmp_path, "b", cases=[("b1", "train", True), ("b2", "test", True), ("b3", "test", False)])
    site(tmp_path, "a", held_out=True, cases=[("a1", "test", True)], simulated=False, note="Mind.")
    found = read_test_set(tmp_path)
    assert [case.case for case in found.cases] == ["a1", "b2"]
    assert (found.unlabelled, found.sites, found.held_out) == (1, ("b", "a"), ("a",))
    assert (found.simulated, found.notes) == (("b",), ("Mind.",))


def test_held_out_sites_alone_are_no_test_set(tmp_path):
    """With no test case on a trained site, the main figures would be empty."""
    site(tmp_path, "a", held_out=True, cases=[("a1", "test", True)])
    with pytest.raises(SegdistillError, match="no labelled test case"):
        read_test_set(tmp_path)


@pytest.mark.parametrize(
    ("count", "expected"), [(2, "a1 b1"), (4, "a1 b1 c1 a2"), (9, "a1 b1 c1 a2 c2 a3")]
)
def test_timed_cases_are_spread_over_sites(count, expected):
    """Sites take turns, so that every site's scans are timed before one is timed twice."""
    names = ("a1", "a2", "a3", "b1", "c1", "c2")
    cases = tuple(TestCase(n, n, n[0], False, Path(n), Path(n)) for n in names)
    assert [case.case for case in spread_over_sites(cases, count)] == expected.split()
