"""A DICOM series becomes a volume in HU at the right place, or a clear refusal."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from segdistill.volume import VolumeError, read_dicom_series, read_volume

SERIES = generate_uid(entropy_srcs=["series"])


def written(
    folder: Path,
    hu: NDArray[np.int16],
    *,
    spacing: tuple[float, float, float] = (0.8, 0.9, 2.5),
    cosines: NDArray[np.float64] | None = None,
    origin: tuple[float, float, float] = (-10.0, 20.0, 30.0),
    change: Callable[[int, Dataset], Any] = lambda index, slice_: None,
) -> NDArray[np.float64]:
    """Write (columns, rows, slices) HU as one file a slice, in random order; gives the LPS affine."""
    cosines = np.eye(3)[:2] if cosines is None else cosines
    step = np.cross(cosines[0], cosines[1]) * spacing[2]
    names = np.random.default_rng(0).permutation(hu.shape[2])
    for index in range(hu.shape[2]):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        uid = generate_uid(entropy_srcs=[str(index)])
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = uid
        slice_.Modality, slice_.SeriesInstanceUID = "CT", SERIES
        slice_.PatientName, slice_.InstanceNumber = "Nobody^Real", int(names[index])
        slice_.Columns, slice_.Rows = hu.shape[:2]
        slice_.PixelSpacing = [spacing[1], spacing[0]]
        slice_.ImageOrientationPatient = [round(float(n), 8) for n in cosines.ravel()]
        place = np.array(origin) + index * step
        slice_.ImagePositionPatient = [round(float(n), 6) for n in place]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.RescaleSlope, slice_.RescaleIntercept = 2, -1024
        stored = ((hu[:, :, index].T.astype(np.int32) + 1024) // 2).astype("<u2")
        slice_.PixelData = stored.tobytes()
        change(index, slice_)
        slice_.save_as(folder / f"{names[index]:03d}", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[0] * spacing[0], cosines[1] * spacing[1]
    affine[:3, 2], affine[:3, 3] = step, origin
    return affine


def scan(slices: int = 5) -> NDArray[np.int16]:
    """(7, 6, slices) even HU from air to bone, every voxel another one."""
    values = np.linspace(-1024, 1500, 7 * 6 * slices) // 2 * 2
    return np.random.default_rng(1).permutation(values).astype(np.int16).reshape(7, 6, slices)


@settings(max_examples=20, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-180.0, 180.0)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 5.0).map(lambda mm: round(mm, 3))] * 3),
    origin=st.tuples(*[st.floats(-400.0, 400.0).map(lambda mm: round(mm, 3))] * 3),
)
def test_every_voxel_has_its_value_at_its_place(
    turn: tuple[float, float, float],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
) -> None:
    """However the slices lie and are named, each voxel's HU is at its patient coordinates, in RAS mm."""
    hu = scan()
    cosines = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lps = written(folder, hu, spacing=spacing, cosines=cosines, origin=origin)
        volume = read_volume(folder)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, hu)
    assert volume.affine == pytest.approx(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, abs=1e-4)
    assert volume.spacing_mm == pytest.approx(spacing, rel=1e-4)


def test_upright_axial_slices_are_lps(tmp_path: Path) -> None:
    """Axial slices of a patient on the back run left, back and up, and keep no header."""
    written(tmp_path, scan())
    volume = read_dicom_series(tmp_path)
    assert volume.orientation == "LPS"
    assert volume.header is None


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    """A DICOMDIR, a note and a folder beside the slices change nothing."""
    written(tmp_path, scan())
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "note.txt").write_text("from the archive")
    (tmp_path / "more").mkdir()
    assert np.array_equal(read_dicom_series(tmp_path).array, scan())


def _set(name: str, value: Any, at: int | None = None) -> Callable[[int, Dataset], None]:
    def change(index: int, slice_: Dataset) -> None:
        if at is None or index == at:
            setattr(slice_, name, value)

    return change


def _lose(name: str) -> Callable[[int, Dataset], None]:
    return lambda index, slice_: delattr(slice_, name)


def _tilt(index: int, slice_: Dataset) -> None:
    slice_.ImagePositionPatient = [-10.0, 20.0 + 0.6 * index, 30.0 + 2.5 * index]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("SeriesInstanceUID", generate_uid(), 2), "2 series in one folder"),
        (_set("PixelSpacing", [0.9, 0.7], 1), "differ in PixelSpacing"),
        (_set("ImageOrientationPatient", [0, 1, 0, 0, 0, 1], 1), "differ in ImageOrientationPatient"),
        (_set("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "right-angled"),
        (_set("ImagePositionPatient", [-10, 20, 32.5], 2), "at one place"),
        (_set("ImagePositionPatient", [-10, 20, 36], 2), "distances are uneven"),
        (_set("NumberOfFrames", 4), "several frames"),
        (_set("SamplesPerPixel", 3), "colour"),
        (_set("RescaleType", "US"), "not HU"),
        (_set("PixelData", b"\0\0"), "can't be decoded"),
        (_lose("RescaleIntercept"), "no HU scale"),
        (_lose("ImagePositionPatient"), "no ImagePositionPatient"),
        (_lose("PixelData"), "can't be decoded"),
        (_tilt, "tilted gantry"),
    ],
)
def test_what_is_no_even_series_is_refused(
    tmp_path: Path, change: Callable[[int, Dataset], None], says: str
) -> None:
    """A series that can't be stacked is refused with its folder or file and the reason."""
    written(tmp_path, scan(), change=change)
    with pytest.raises(VolumeError, match=says) as caught:
        read_dicom_series(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Nobody" not in str(caught.value)


@pytest.mark.parametrize("lost", [1, 2])
def test_missing_slices_are_counted(tmp_path: Path, lost: int) -> None:
    """Slices that are gone from the middle are counted, not stretched over."""
    written(tmp_path, scan(8))
    by_place = sorted(
        tmp_path.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2])
    )
    for path in by_place[3 : 3 + lost]:
        path.unlink()
    with pytest.raises(VolumeError, match=f"{lost} slices are missing"):
        read_dicom_series(tmp_path)


@pytest.mark.parametrize(("slices", "says"), [(0, "without a DICOM file"), (1, "single slice")])
def test_too_few_slices_are_refused(tmp_path: Path, slices: int, says: str) -> None:
    """An empty folder and a single slice are no volume."""
    written(tmp_path, scan()[:, :, :slices])
    with pytest.raises(VolumeError, match=says):
        read_volume(tmp_path)


def test_a_damaged_header_names_its_file(tmp_path: Path) -> None:
    """A file that only begins like DICOM is named."""
    written(tmp_path, scan())
    (tmp_path / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    with pytest.raises(VolumeError, match="broken"):
        read_dicom_series(tmp_path)
