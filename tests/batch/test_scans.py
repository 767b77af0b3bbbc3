"""Which scans are meant by files and folders, and what they are called."""

from pathlib import Path

import pytest

from segdistill.batch.scans import digest_of, find_scans, names
from segdistill.files import SegdistillError
from tests.dicom_series import scan as hounsfield
from tests.dicom_series import written


def test_a_folder_of_files_is_its_scans(tmp_path: Path) -> None:
    """NIfTI and MGZ files right in a folder are scans, in order; no hidden, other or deeper one is."""
    for name in ("b.nii", "a.nii.gz", "c.mgz", ".d.nii", "notes.txt", "deeper/e.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_scans([tmp_path, tmp_path / "a.nii.gz"])
    assert [path.name for path in found] == ["a.nii.gz", "b.nii", "c.mgz"]


def test_a_series_is_one_scan_and_its_parent_holds_many(tmp_path: Path) -> None:
    """A DICOM series is told from a folder of series, and an empty folder says what is needed."""
    for name in ("one", "two/images"):
        (tmp_path / name).mkdir(parents=True)
        written(tmp_path / name, hounsfield())
    (tmp_path / "neither").mkdir()
    assert find_scans([tmp_path / "one"]) == [tmp_path / "one"]
    assert find_scans([tmp_path]) == [tmp_path / "one", tmp_path / "two"]
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "two")
    with pytest.raises(SegdistillError, match=r"neither: no scan in this folder.*DICOM"):
        find_scans([tmp_path / "neither"])


def test_names_that_are_alike_get_their_folders() -> None:
    """Only names that would clash get folders in front; what can't be told apart is refused."""
    scans = [Path("s/ann/mri/orig.mgz"), Path("s/bob/mri/orig.mgz"), Path("s/x.nii.gz")]
    assert names(scans) == ["ann_mri_orig", "bob_mri_orig", "x"]
    with pytest.raises(SegdistillError, match=r"a\.nii and a\.nii\.gz have the same name"):
        names([Path("a.nii"), Path("a.nii.gz")])
