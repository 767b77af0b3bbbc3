"""'segdistill segment', as a user runs it: one scan, a folder, again, and with bad scans among them."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segdistill import released
from segdistill.batch.picture import draw
from segdistill.batch.table import read_table
from segdistill.cli import app
from segdistill.files import SegdistillError
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.quality import FIELD, Limits
from segdistill.runtime.segment import Segmentator
from segdistill.volume import Volume, read_label_map, read_volume, same_grid
from tests.dicom_series import written
from tests.onnx_models import ball_file, ball_scan, threshold_bundle

LIMITS = Limits(0.5, 0.5, {"structure_1": (5.0, 20.0)})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network that finds what is brighter than 100, with limits of quality."""
    folder = tmp_path_factory.mktemp("model") / "bundle"
    return threshold_bundle(folder, provenance={FIELD: LIMITS.to_json()})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user is in, with three scans in 'scans', one of them too small a ball."""
    monkeypatch.chdir(tmp_path)
    for name, radius in (("ann.nii.gz", 14.0), ("bob.nii", 13.0), ("eve.nii.gz", 5.0)):
        ball_file(tmp_path / "scans" / name, radius_mm=radius)
    return tmp_path


def run(bundle: Bundle, *words: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    done = CliRunner().invoke(app, ["segment", *map(str, words), "--model", str(bundle.folder)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def rows(path: Path) -> dict[str, dict[str, str]]:
    """The table, as any program reads it."""
    with path.open(newline="") as stream:
        return {row["scan"]: row for row in csv.DictReader(stream)}


def test_one_scan_gives_its_label_map_and_volumes(folder: Path, bundle: Bundle) -> None:
    """One file in, one label map on its grid out and nothing else; volumes and quality are printed."""
    code, out, _ = run(bundle, "scans/ann.nii.gz", "-o", "labels.nii.gz")
    assert code == 0
    labels = read_label_map(folder / "labels.nii.gz")
    assert same_grid(labels, read_volume(folder / "scans/ann.nii.gz"))
    assert "structure_1: 11." in out
    assert "labels.nii.gz: good, confidence 1.00" in out
    assert sorted(path.name for path in folder.iterdir()) == ["labels.nii.gz", "scans"]
    code, out, _ = run(
        bundle, "scans/ann.nii.gz", "-o", "labels.nii", "--volumes", "v.csv", "--pictures"
    )
    assert code == 0
    assert rows(folder / "v.csv")["scans/ann.nii.gz"]["structure_1_ml"].startswith("11.")
    assert Image.open(folder / "labels.png").format == "PNG"


def test_a_folder_gives_maps_pictures_and_a_table(folder: Path, bundle: Bundle) -> None:
    """Each scan of a folder has a map, a picture and a row; what is to be checked is named with why."""
    code, out, err = run(bundle, "scans", "-o", "out")
    assert code == 0
    assert "3/3" in err
    assert "3 label maps, 0 of them from before; 1 to check" in out
    assert "check eve.nii.gz: structure_1 has 0." in out
    names = {f"{stem}.{kind}" for stem in ("ann", "bob", "eve") for kind in ("nii.gz", "png")}
    assert {path.name for path in (folder / "out").iterdir()} == names | {"volumes.csv"}
    table = rows(folder / "out" / "volumes.csv")
    assert table["scans/bob.nii"]["labels"] == "bob.nii.gz"
    assert {row["bundle_digest"] for row in table.values()} == {bundle.digest}
    assert [row["verdict"] for row in table.values()] == ["good", "good", "check"]
    measured = np.count_nonzero(read_label_map(folder / "out" / "bob.nii.gz").array) * 0.008
    assert float(table["scans/bob.nii"]["structure_1_ml"]) == pytest.approx(measured, abs=1e-3)


def test_what_is_finished_is_not_done_again(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    """A second run does what is new, lost or changed; another model and --overwrite do all of it."""
    run(bundle, "scans", "-o", "out", "--no-pictures")
    maps = {path.name: path.stat().st_ino for path in (folder / "out").glob("*.nii.gz")}

    def redone() -> set[str]:
        now = {path.name: path.stat().st_ino for path in (folder / "out").glob("*.nii.gz")}
        found = {name for name in now if now[name] != maps.get(name)}
        maps.update(now)
        return found

    (folder / "out" / "ann.nii.gz").unlink()
    ball_file(folder / "scans" / "bob.nii", radius_mm=11)
    ball_file(folder / "scans" / "new.nii.gz", radius_mm=11)
    keep = (folder / "out" / "eve.nii.gz").stat().st_ino
    code, out, _ = run(bundle, "scans", "-o", "out", "--no-pictures")
    assert code == 0
    assert "4 label maps, 1 of them from before; 1 to check" in out
    assert (folder / "out" / "eve.nii.gz").stat().st_ino == keep
    assert float(rows(folder / "out/volumes.csv")["scans/bob.nii"]["structure_1_ml"]) < 8
    redone()
    run(bundle, "scans", "-o", "out", "--no-pictures")
    assert redone() == set()
    run(bundle, "scans/ann.nii.gz", "-o", "out", "--overwrite", "--no-pictures")
    assert redone() == {"ann.nii.gz"}
    assert len(rows(folder / "out" / "volumes.csv")) == 4
    other = threshold_bundle(tmp_path / "other", [150.0])
    run(other, "scans", "-o", "out", "--no-pictures")
    assert len(redone()) == 4


def test_a_bad_scan_does_not_stop_the_others(folder: Path, bundle: Bundle) -> None:
    """The bad scan is named at the end with its reason, has a row, and is tried again next time."""
    (folder / "scans" / "bad.nii.gz").write_bytes(b"nonsense")
    code, out, err = run(bundle, "scans", "-o", "out", "--no-pictures")
    assert code == 1
    assert "3 label maps" in out
    assert err.splitlines()[-1].startswith("error: scans/bad.nii.gz: not a NIfTI")
    table = rows(folder / "out" / "volumes.csv")
    assert table["scans/bad.nii.gz"]["error"].startswith("not a NIfTI")
    assert table["scans/bad.nii.gz"]["structure_1_ml"] == ""
    assert not (folder / "out" / "bad.nii.gz").exists()
    ball_file(folder / "scans" / "bad.nii.gz")
    code, out, _ = run(bundle, "scans", "-o", "out", "--no-pictures")
    assert code == 0
    assert "4 label maps, 3 of them from before" in out


def test_a_fault_nobody_foresaw_does_not_stop_the_others(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with one scan, the others are segmented."""
    segment = Segmentator.segment

    def fragile(self: Segmentator, volume: Volume) -> object:
        if np.count_nonzero(volume.array > 100) < 500:
            raise KeyError("odd")
        return segment(self, volume)

    monkeypatch.setattr(Segmentator, "segment", fragile)
    code, _, err = run(bundle, "scans", "-o", "out", "--no-pictures")
    assert code == 1
    assert "eve.nii.gz: a fault that nobody foresaw (KeyError" in err
    assert len(list((folder / "out").glob("*.nii.gz"))) == 2


def test_a_series_gives_a_nifti_without_the_patients_name(folder: Path, bundle: Bundle) -> None:
    """A DICOM series gives a NIfTI label map; the patient's name in it comes out nowhere."""
    (folder / "study" / "SE1").mkdir(parents=True)
    shape = (24, 22, 20)
    hu = (ball_scan(shape, radius_mm=10)[0].array // 2 * 2).astype(np.int16)
    written(folder / "study" / "SE1", hu, spacing=(2, 2, 2))
    code, out, err = run(bundle, "study", "-o", "out")
    assert code == 0, err
    image = nib.load(folder / "out" / "SE1.nii.gz")
    assert image.shape == shape
    assert np.count_nonzero(np.asarray(image.dataobj)) > 300
    everything = out + err + (folder / "out" / "volumes.csv").read_text()
    assert "Nobody" not in everything
    assert b"Nobody" not in (folder / "out" / "SE1.png").read_bytes()


def test_nothing_of_anybody_elses_is_replaced(folder: Path, bundle: Bundle) -> None:
    """A map without a row, one of another scan, scans themselves and foreign tables stay as they are."""
    (folder / "out").mkdir()
    (folder / "out" / "ann.nii.gz").write_bytes(b"drawn by hand")
    for words, told in (
        (("scans", "-o", "out"), "has no row"),
        (("scans", "-o", "scans"), "the scans lie here"),
        (("scans/ann.nii.gz", "-o", "scans/ann.nii.gz"), "take the place of the scan"),
        (("scans", "-o", "labels.nii.gz"), "one label map, but there are 3 scans"),
    ):
        code, _, err = run(bundle, *words)
        assert code == 1
        assert told in err
    assert (folder / "out" / "ann.nii.gz").read_bytes() == b"drawn by hand"
    assert [path.name for path in (folder / "out").iterdir()] == ["ann.nii.gz"]
    run(bundle, "scans", "-o", "mine", "--no-pictures")
    ball_file(folder / "others" / "ann.nii.gz", radius_mm=9)
    code, _, err = run(bundle, "others", "-o", "mine")
    assert code == 1
    assert "is of another scan, scans/ann.nii.gz" in err
    (folder / "mine" / "volumes.csv").write_text("a,b\n1,2\n")
    code, _, err = run(bundle, "scans", "-o", "mine")
    assert code == 1
    assert "not a table that this command wrote" in err
    with pytest.raises(SegdistillError, match="no column scan"):
        read_table(folder / "mine" / "volumes.csv")


def test_without_a_model_it_says_what_to_name(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released model is taken where there is one; where there is none, --model is named."""
    words = ["segment", "scans/ann.nii.gz", "-o", "labels.nii.gz"]
    monkeypatch.setattr(released.released_bundle, "__defaults__", (folder,))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "no model of this task comes with this installation" in done.stderr
    assert "--model" in done.stderr
    threshold_bundle(folder / "released" / "brain_mri")
    assert CliRunner().invoke(app, words).exit_code == 0
    assert released.released_bundle("brain_mri") == folder / "released" / "brain_mri"


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASL"])
def test_the_patients_right_is_at_the_left_of_the_picture(bundle: Bundle, axes: str) -> None:
    """However a scan is stored, its right and front are drawn at the left and its top at the top."""
    ras = np.full((40, 44, 48), 10.0, np.float32)
    ras[24:36, 26:40, 30:44] = 200  # right, front, top
    image = nib.Nifti1Image(ras, np.diag([2.0, 2, 2, 1]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    turned = image.as_reoriented(turn)
    scan = Volume(np.asarray(turned.dataobj, np.float32), turned.affine)
    outcome = Segmentator(bundle).segment(scan)
    panels = draw(scan, outcome, {1: "structure_1"}, None, "$\\x name").axes
    for panel, (column, row) in zip(panels[:3], ((36, 26), (36, 30), (40, 30)), strict=True):
        drawn = np.asarray(panel.images[0].get_array())[..., 0]
        bright = np.argwhere(drawn > 0.5)
        width = drawn.shape[1]
        assert bright[:, 1].min() == width - column  # counted from the picture's left
        assert bright[:, 0].min() == row  # from below up
    assert [text.get_text() for text in panels[0].texts] == ["R", "L", "A", "P"]
    assert {text.get_text() for text in panels[2].texts} == {"A", "P", "S", "I"}
