"""Manifests: what is written is read, and what contradicts itself is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segdistill.files import SegdistillError, read_json, write_json
from segdistill.sites.manifest import MANIFEST, Case, Site, read_sites

CASES = tuple(
    Case(f"a-{number}", f"person-{number}", f"images/a-{number}.nii", None, split)
    for number, split in enumerate(("train", "val", "test"))
)
SITE = Site("a", "toy", True, False, "toy-2", {1: "one", 7: "seven"}, CASES, "made up")


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    """A manifest survives the way to disk and back, codes as numbers."""
    SITE.write(tmp_path)
    assert Site.read(tmp_path) == SITE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cases": (*CASES, CASES[0])}, "a-0 is listed twice"),
        ({"cases": (*CASES, replace(CASES[0], case="a-9", split="test"))}, "person-0 is in two splits"),
        ({"held_out": True}, "held out, but case a-0 is in train"),
        ({"cases": (replace(CASES[0], split="some"),)}, "split 'some'"),
        ({"cases": ()}, "no cases"),
    ],
)
def test_a_contradiction_is_refused_and_not_written(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    """A manifest that contradicts itself is named with what is wrong, and no file appears."""
    with pytest.raises(SegdistillError, match=rf"{MANIFEST}.*{says}"):
        replace(SITE, **change).write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["cases", "structures", "held_out"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    """A manifest without one of its fields is refused by file and field."""
    SITE.write(tmp_path)
    body = read_json(tmp_path / MANIFEST)
    del body[field]
    write_json(tmp_path / MANIFEST, body)
    with pytest.raises(SegdistillError, match=rf"{MANIFEST}.*{field}"):
        Site.read(tmp_path)


def test_sites_come_sorted_with_their_folders(tmp_path: Path) -> None:
    """All sites are found, by name, whatever order they were made in."""
    other = tuple(replace(case, case=f"b-{case.case}") for case in CASES)
    replace(SITE, site="b", cases=other).write(tmp_path / "b")
    SITE.write(tmp_path / "a")
    assert [(path.name, site.site) for path, site in read_sites(tmp_path)] == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(
    ("change", "says"),
    [({}, "a-0 is also in site a"), ({"structures": {1: "other"}}, "structures differ")],
)
def test_sites_that_clash_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """Two sites may share neither a case name nor disagree on structures."""
    SITE.write(tmp_path / "a")
    replace(SITE, site="b", **change).write(tmp_path / "b")
    with pytest.raises(SegdistillError, match=says):
        list(read_sites(tmp_path))


def test_no_site_says_how_to_get_one(tmp_path: Path) -> None:
    """An empty folder gives the commands that fill it."""
    with pytest.raises(SegdistillError, match=r"dvc repro.*site add"):
        list(read_sites(tmp_path))
