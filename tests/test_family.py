"""family.json: written once, read everywhere, as one type."""

from pathlib import Path

import pytest

from segdistill.family import control_of, read_family, write_family
from segdistill.files import SegdistillError, read_json, write_json
from tests.figures import TEACHER, VERDICT, control, student

FAMILY = [TEACHER, student(), control()]


def test_family_comes_back_as_written(tmp_path: Path) -> None:
    """What is written is read again, verdicts included, and the rows are flat."""
    write_family(tmp_path / "family.json", FAMILY)
    assert read_family(tmp_path / "family.json") == FAMILY
    rows = read_json(tmp_path / "family.json")
    assert [row["worst_site"] for row in rows] == [None, VERDICT.worst_site, None]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("recall", 0.9, "unknown key recall"),
        ("dice", None, "no key dice"),
        ("dice", "0.9", "row 1: dice: input should be a valid number"),
        ("role", "pupil", "row 1: role: input should be"),
        ("margin", True, "row 1: verdict: margin"),
        ("name", "teacher", "a name is listed twice"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, key: str, value: object, named: str) -> None:
    """An unknown or missing key, a wrong type or a repeated name is an error that names it."""
    write_family(tmp_path / "family.json", FAMILY)
    rows = read_json(tmp_path / "family.json")
    rows[1][key] = value
    if value is None:
        del rows[1][key]
    write_json(tmp_path / "family.json", rows)
    with pytest.raises(SegdistillError, match=rf"family\.json: .*{named}.*dvc repro evaluate"):
        read_family(tmp_path / "family.json")


@pytest.mark.parametrize("body", [{}, [3], "text", [[1]]])
def test_what_is_no_list_of_members_is_refused(tmp_path: Path, body: object) -> None:
    """JSON of another kind is refused in one line."""
    write_json(tmp_path / "family.json", body)
    with pytest.raises(SegdistillError, match="not a family's figures"):
        read_family(tmp_path / "family.json")


def test_a_student_has_the_control_of_its_width() -> None:
    """The control of a student is the one of its width; nobody else has one."""
    other = student(name="student-x8", width=0.125)
    family = [*FAMILY, other]
    assert [control_of(member, family) for member in family] == [None, control(), None, None]
