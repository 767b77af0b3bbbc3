"""What the demo decides and says; the chain itself is what 'make demo' runs."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines.params import read_params
from segdistill.files import SegdistillError, write_json
from segdistill.sites.manifest import Case, Site
from tests.figures import TEACHER, student
from tests.knobs import ROOT, write_params
from tools import demo

FAMILY = [TEACHER, student(retention=0.98113)]
PARAMS = read_params(ROOT / "params.yaml")


def _site(folder: Path, name: str, *, held_out: bool, label: bool = True) -> None:
    cases = tuple(
        Case(
            f"{name}-{n}", f"{name}-{n}", f"images/{n}.nii", f"labels/{n}.nii" if label else None, split
        )
        for n, split in enumerate(["test", "test"] if held_out else ["train", "test"])
    )
    Site(name, "brain_mri", True, held_out, "p", {1: "csf"}, cases).write(folder / name)


def test_demo_asks_about_a_held_out_site(tmp_path: Path) -> None:
    """The scan that is sent is a labelled test case of a held-out site, wherever that comes in order."""
    _site(tmp_path, "a", held_out=False)
    _site(tmp_path, "b", held_out=True)
    asked = demo.choose(tmp_path)
    assert (asked.case, asked.held_out, asked.simulated) == ("b-0", True, True)
    assert asked.label == tmp_path / "b" / "labels" / "0.nii"


def test_demo_without_held_out_site_takes_a_test_case(tmp_path: Path) -> None:
    """Without a held-out site it is a test case, never one that was trained on, and it says so."""
    _site(tmp_path, "a", held_out=False)
    asked = demo.choose(tmp_path)
    assert (asked.case, asked.held_out) == ("a-1", False)


def test_demo_without_labelled_test_case_says_what_to_do(tmp_path: Path) -> None:
    """Where no test case has a reference, the demo names the folder and stops."""
    _site(tmp_path, "a", held_out=False, label=False)
    with pytest.raises(SegdistillError, match="no test case has a label map"):
        demo.choose(tmp_path)


def _scan(path: Path) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([1.5, 1.5, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=2)
    image.to_filename(path)
    return image


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda image: image, []),
        (lambda image: image.set_sform(image.affine, code=1), ["sform_code"]),
        (lambda image: image.header.set_xyzt_units("meter"), ["xyzt_units"]),
        (
            lambda image: image.set_qform(np.diag([1.5, 1.5, 3.001, 1.0]), code=1),
            ["voxel sizes"],
        ),
        (
            lambda image: image.set_sform(image.affine + np.eye(4, k=3) * 1e-3, code=2),
            ["srow_x", "affine"],
        ),
    ],
)
def test_grid_is_compared_to_the_bit(tmp_path: Path, change, named: list[str]) -> None:
    """Shape, voxel sizes, both transforms with their codes and the units must be equal, not close."""
    image = _scan(tmp_path / "scan.nii")
    changed = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), image.affine, image.header)
    change(changed)
    changed.to_filename(tmp_path / "labels.nii.gz")
    assert demo.grid_differences(tmp_path / "scan.nii", tmp_path / "labels.nii.gz") == named


def test_grid_of_another_shape_is_named(tmp_path: Path) -> None:
    """A label map with one slice less is not on the scan's grid."""
    image = _scan(tmp_path / "scan.nii")
    other = nib.Nifti1Image(np.zeros((4, 5, 5), np.uint8), image.affine, image.header)
    other.to_filename(tmp_path / "labels.nii")
    assert "shape" in demo.grid_differences(tmp_path / "scan.nii", tmp_path / "labels.nii")


def test_promotion_of_a_person_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where somebody has promoted a version, the demo promotes nothing."""
    write_json(tmp_path / "registry/brain_mri/champion.json", {"version": 7, "name": "student-x8"})
    demo.promote(tmp_path, PARAMS, FAMILY)
    assert "v7 student-x8: kept" in capsys.readouterr().out
    assert not (tmp_path / "mlflow.db").exists()


def test_demo_without_its_student_says_so(tmp_path: Path) -> None:
    """A family without the student that the demo promotes is an error that says what to do."""
    write_json(tmp_path / "registry/brain_mri/champion.json", {"version": None})
    with pytest.raises(SegdistillError, match="no student-x4"):
        demo.promote(tmp_path, PARAMS, FAMILY[:1])


def _summary(tmp_path: Path, version: int) -> str:
    """The summary where v2 is the family's student and the champion is ``version``."""
    _site(tmp_path / "data/sites/brain_mri", "b", held_out=True)
    registry = tmp_path / "registry/brain_mri"
    write_json(registry / "champion.json", {"version": version, "name": "student-x4"})
    write_json(registry / "registered.json", {"teacher": {"version": 1}, "student-x4": {"version": 2}})
    seen = {"name": "student-x4", "dice": 0.8123, "groups": {"gm": 0.8123}}
    write_json(tmp_path / "reports/brain_mri/unseen.json", {"models": [seen]})
    asked = demo.choose(tmp_path / "data/sites/brain_mri")
    answered = demo.Answered(
        tmp_path / "demo/b-0.labels.nii.gz",
        tmp_path / "demo/b-0.png",
        {"csf": 0.5, "x": float("nan")},
        1.0,
    )
    return demo.summary(tmp_path, PARAMS, FAMILY, asked, answered)


def test_summary_says_how_to_go_on(tmp_path: Path) -> None:
    """The summary has the family's figures, the champion, the overlay and three commands, and warns."""
    text = _summary(tmp_path, version=2)
    assert "not of this family" not in text
    for said in (
        "SIMULATED",
        "Champion   v2 student-x4",
        "Real scan  student-x4 on a scan never trained on: Dice 0.812",
        "mean Dice 0.500",
        "demo/b-0.png",
        "mlflow ui",
        "bentoml serve",
        "curl -F scan=@data/sites/brain_mri/b/images/0.nii",
        "not a medical device",
    ):
        assert said in text


def test_champion_of_another_family_is_named_as_such(tmp_path: Path) -> None:
    """A champion that isn't of the family is named so, and gets none of the family's figures."""
    text = _summary(tmp_path, version=7)
    assert "Champion   v7 student-x4, not of this family" in text
    assert "Real scan" not in text


def test_family_table_is_aligned() -> None:
    """Every line of the family table has the same length, and a missing figure reads none."""
    lines = demo.family_table(FAMILY)
    assert len({len(line) for line in lines}) == 1
    assert "student-x4" in lines[2]
    assert "98.11%" in lines[2]
    assert "none" in lines[2]


@pytest.mark.slow
def test_service_that_does_not_start_is_shown(tmp_path: Path) -> None:
    """Without anything packaged, the service ends, and the demo shows its last words at once."""
    root = Path(__file__).resolve().parents[2]
    for name in ("bentofile.yaml", "serving"):
        source = root / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, tmp_path / name)
    with (
        pytest.raises(SegdistillError, match=r"(?s)ended.*Nothing is packaged"),
        demo.serve(tmp_path, tmp_path / "serve.log", "brain_mri"),
    ):
        pass


def test_demo_finds_the_tasks_pipeline(tmp_path: Path) -> None:
    """Without a task the demo takes the root, with one its folder, and an unknown one is refused."""
    write_params(tmp_path / "params.yaml", task="brain_mri")
    own = tmp_path / "tasks" / "abdominal_ct"
    own.mkdir(parents=True)
    write_params(own / "params.yaml", task="abdominal_ct")
    assert demo.pipeline_of(tmp_path, None) == demo.pipeline_of(tmp_path, "brain_mri") == tmp_path
    assert demo.pipeline_of(tmp_path, "abdominal_ct") == own
    with pytest.raises(SegdistillError, match=r"no such task.*brain_mri, abdominal_ct"):
        demo.pipeline_of(tmp_path, "knee")
