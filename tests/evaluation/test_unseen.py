"""The check on a scan that no training saw: its data, its groups, and the whole stage."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segdistill.evaluation.unseen import check_unseen, in_words, score_groups
from segdistill.files import SegdistillError, read_json, sha256_of, write_json
from segdistill.sites.pinned import WHEELS_VARIABLE
from segdistill.sites.protocol import read_protocol
from segdistill.sites.unseen import SOURCES, Group, make_unseen, read_unseen
from segdistill.volume import read_label_map, write_volume
from tests.small_family import TASK, make_root
from tests.surfaces import ellipsoid, gifti
from tools.demo import real_scan_lines

STRUCTURES = {1: "grey", 2: "white", 3: "deep"}
GROUPS = {"grey": Group((2,), ("grey",)), "white": Group((1,), ("white", "deep"))}


def _head() -> tuple[np.ndarray, np.ndarray]:
    """A reference (1 white, 2 grey) and the label map that agrees with it."""
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[4:16, 4:16, 4:16] = 2
    reference[6:14, 6:14, 6:14] = 1
    labels = np.select([reference == 2, reference == 1], [1, 2]).astype(np.uint8)
    labels[8:10, 8:10, 8:10] = 3
    return labels, reference


def test_a_perfect_label_map_scores_one_and_a_blob_in_the_face_lowers_it() -> None:
    """Unions agree where they should, and a label outside the reference costs its own group alone."""
    labels, reference = _head()
    perfect = score_groups(labels, reference, STRUCTURES, GROUPS, 0.001)
    assert [score.dice for score in perfect] == [1.0, 1.0]
    assert [score.volume_ml for score in perfect] == [score.reference_ml for score in perfect]
    labels[0:4, 0:4, 0:4] = 1
    grey, white = score_groups(labels, reference, STRUCTURES, GROUPS, 0.001)
    true = 12**3 - 8**3
    assert grey.dice == pytest.approx(2 * true / (2 * true + 64))
    assert white.dice == 1.0


def test_a_region_limits_what_is_compared() -> None:
    """Outside the region nothing counts, inside everything does."""
    labels, reference = _head()
    labels[0:4, 0:4, 0:4] = 1
    groups = {"grey": Group((2,), ("grey",), region=(1, 2))}
    assert score_groups(labels, reference, STRUCTURES, groups, 1.0)[0].dice == 1.0


def test_a_structure_that_the_family_lacks_is_named() -> None:
    """A group of a structure that no code has is refused."""
    labels, reference = _head()
    with pytest.raises(SegdistillError, match="cerebellum"):
        score_groups(labels, reference, STRUCTURES, {"a": Group((1,), ("cerebellum",))}, 1.0)


def test_every_tasks_source_is_sound() -> None:
    """Each file of unseen scans is of a known task, pinned by hash, and names that task's structures."""
    for path in SOURCES.glob("*.yaml"):
        body = yaml.safe_load(path.read_text())
        assert len(body["package"]["sha256"]) == 64
        known = set(read_protocol(path.stem).structures.values())
        for case in body["cases"]:
            assert all(set(group["predicted"]) <= known for group in case["groups"].values())
            assert sum(group.get("averaged", True) for group in case["groups"].values()) >= 1


def _package(folder: Path, groups: dict[str, Any]) -> Path:
    """A package with a scan and two surfaces, and the folder of the source that describes it."""
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (40.0, -40.0, -40.0)
    centres = np.moveaxis(np.indices((40, 40, 40)), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    level = np.linalg.norm(centres / np.array([30.0, 24.0, 20.0]), axis=-1)
    write_volume(folder / "scan.nii.gz", np.where(level < 1, 110.0, 30.0).astype(np.float32), affine)
    members = {
        "p/scan.nii.gz": (folder / "scan.nii.gz").read_bytes(),
        "p/inner.gii": gifti(*ellipsoid(np.array([20.0, 16.0, 14.0]))),
        "p/outer.gii": gifti(*ellipsoid(np.array([30.0, 24.0, 20.0]))),
    }
    archive = folder / "p-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tape:
        for name, body in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tape.addfile(entry, io.BytesIO(body))
    case = {
        "case": "made-up",
        "image": "p/scan.nii.gz",
        "surfaces": {1: ["p/inner.gii"], 2: ["p/outer.gii"]},
        "groups": groups,
        "note": "Made up <for the test>.",
    }
    package = {"requirement": "p==1.0", "file": archive.name, "sha256": sha256_of(archive)}
    sources = folder / "sources"
    sources.mkdir()
    (sources / f"{TASK}.yaml").write_text(yaml.safe_dump({"package": package, "cases": [case]}))
    return sources


def test_the_whole_stage_on_a_small_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the package to table, summary, picture, page and terminal, with a Dice known beforehand."""
    groups = {
        "all": {"reference": [1, 2], "predicted": ["structure_1"]},
        "core": {"reference": [1], "predicted": ["structure_1"], "averaged": False},
    }
    # The family of the tests has a structure that no protocol knows.
    monkeypatch.setattr("segdistill.sites.unseen._check_structures", lambda *_: None)
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path))
    data, out = tmp_path / "data", tmp_path / "out"
    (case,) = make_unseen(TASK, data, _package(tmp_path, groups))
    assert read_unseen(data) == (case,)
    inner = np.count_nonzero(read_label_map(data / case.reference).array == 1)
    assert inner * 0.008 == pytest.approx(4 / 3 * np.pi * 20 * 16 * 14 / 1000, rel=0.02)
    make_root(tmp_path)
    body = check_unseen(tmp_path / "bundles" / TASK, data, out, TASK)
    assert body == read_json(out / "unseen.json")
    by_name = {row["name"]: row for row in body["models"]}
    # The scan has 110 inside: the teacher, who labels from 120 on, finds nothing, the others everything.
    assert by_name["teacher"]["dice"] == 0.0
    assert by_name["student-x4"]["dice"] > 0.97
    assert by_name["student-x4"]["dice"] == by_name["student-x4"]["groups"]["all"]
    assert by_name["student-x4"]["groups"]["core"] < 0.6
    assert len((out / "unseen.csv").read_text().splitlines()) == 1 + 3 * 2
    assert (out / "unseen.png").read_bytes().startswith(b"\x89PNG")
    assert any(line.startswith("Not in the mean: core") for line in in_words(body))
    assert "student-x4" in real_scan_lines(out / "unseen.json", "student-x4")[0]


def test_a_task_without_unseen_scans_gets_empty_reports(tmp_path: Path) -> None:
    """Nothing to check is no error, and is said."""
    make_root(tmp_path)
    assert make_unseen(TASK, tmp_path / "data", tmp_path / "no-sources") == ()
    body = check_unseen(tmp_path / "bundles" / TASK, tmp_path / "data", tmp_path / "out", TASK)
    assert body["models"] == []
    assert real_scan_lines(tmp_path / "out" / "unseen.json", "teacher") == []


@pytest.mark.parametrize(
    "change",
    [
        {"groups": {}},
        {"groups": {"a": {"reference": [], "predicted": ["csf"]}}},
        {"groups": {"a": {"reference": [1], "predicted": ["csf"], "averaged": False}}},
        {"groups": [1]},
        {"note": None, "image": None, "groups": None},
    ],
)
def test_a_bad_manifest_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    """A manifest that compares nothing, or isn't one, is refused with its path and what to do."""
    case = {"case": "a", "image": "i.nii", "reference": "r.nii", "note": "n"}
    write_json(tmp_path / "unseen.json", {"cases": [{**case, **change}]})
    with pytest.raises(SegdistillError, match=r"unseen\.json.*dvc repro unseen_data"):
        read_unseen(tmp_path)


def test_a_source_with_a_structure_of_another_task_is_refused(tmp_path: Path) -> None:
    """A misspelt structure is found before anything is fetched."""
    sources = _package(tmp_path, {"a": {"reference": [1], "predicted": ["liver"]}})
    with pytest.raises(SegdistillError, match="liver"):
        make_unseen(TASK, tmp_path / "out", sources)
