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
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from segdistill.volume import VolumeError, read_dicom_series, read_volume
from segdistill.volume.grid import reason
from tests.dicom_series import scan, written


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


def by_place(folder: Path) -> list[Path]:
    """The slices' files from the lowest to the highest."""
    return sorted(
        folder.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2])
    )


def test_what_cannot_be_a_slice_is_left_alone(tmp_path: Path) -> None:
    """A DICOMDIR, a note, a picture and an empty folder beside the slices change nothing."""
    plain = tmp_path / "plain"
    plain.mkdir()
    written(plain, scan())
    listed = FileSet()
    for path in plain.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.PatientID = slice_.StudyID = "1"
        slice_.StudyDate, slice_.StudyTime = "20000101", "120000"
        slice_.StudyInstanceUID, slice_.SeriesNumber = "1.2.3", 1
        listed.add(slice_)
    listed.write(tmp_path / "disc")
    assert (tmp_path / "disc" / "DICOMDIR").is_file()
    (tmp_path / "disc" / "note.txt").write_text("from the archive, 1.2.840.10008.5.1.4.1.1.2")
    (tmp_path / "disc" / "shown.png").write_bytes(b"\x89PNG" + b"\0" * 200)
    (tmp_path / "disc" / "more").mkdir()
    assert np.array_equal(read_dicom_series(tmp_path / "disc").array, scan())


def test_slices_are_read_wherever_they_lie_below_the_folder(tmp_path: Path) -> None:
    """A series that an export spread over subfolders is read whole."""
    written(tmp_path, scan(9))
    for place, path in enumerate(by_place(tmp_path)):
        if place > 2:
            below = tmp_path / "A" / f"B{place % 2}"
            below.mkdir(parents=True, exist_ok=True)
            path.rename(below / path.name)
    assert np.array_equal(read_dicom_series(tmp_path).array, scan(9))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("bare", [1, 5])
@pytest.mark.parametrize("meta", [False, True])
def test_slices_without_a_preamble_are_read(
    tmp_path: Path, implicit: bool, bare: int, meta: bool
) -> None:
    """Slices without the 128 bytes and DICM, and without the file's own header, are slices."""
    written(tmp_path, scan())
    for path in by_place(tmp_path)[-bare:]:
        slice_ = pydicom.dcmread(path)
        slice_.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
        slice_.preamble = None
        if not meta:
            slice_.file_meta = FileMetaDataset()
        slice_.save_as(path, implicit_vr=implicit, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_dicom_series(tmp_path).array, scan())


@pytest.mark.parametrize(
    "lost",
    [
        lambda body: b"",
        lambda body: bytes(len(body)),
        lambda body: body[:120] + b"\xff" * 12 + body[132:],
        lambda body: body[:200],
        lambda body: body[:-10],
    ],
    ids=["empty", "zeros", "magic", "header", "end"],
)
def test_a_damaged_slice_is_named_and_never_left_out(
    tmp_path: Path, lost: Callable[[bytes], bytes]
) -> None:
    """The last slice, lost to an interrupted copy or damaged, stops the reading and is named."""
    written(tmp_path, scan())
    last = by_place(tmp_path)[-1]
    last.write_bytes(lost(last.read_bytes()))
    with pytest.raises(VolumeError) as caught:
        read_dicom_series(tmp_path)
    assert str(last) in str(caught.value)


@pytest.mark.parametrize("size", [0, 4000])
def test_a_file_without_content_is_to_be_copied_again(tmp_path: Path, size: int) -> None:
    """An empty file, or one of zeros, isn't called a scout or a report."""
    written(tmp_path, scan())
    by_place(tmp_path)[-1].write_bytes(bytes(size))
    with pytest.raises(VolumeError, match=r"nothing can be read in it.*Copy it again"):
        read_dicom_series(tmp_path)


@pytest.mark.parametrize("target", ["nothing", "elsewhere"])
def test_a_link_to_nothing_or_to_a_folder_is_named(tmp_path: Path, target: str) -> None:
    """Behind a link that leads to nothing, or to a folder, slices may be: it is named."""
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "series"
    folder.mkdir()
    written(folder, scan())
    (folder / "link").symlink_to(tmp_path / target)
    with pytest.raises(VolumeError, match="link: a link to a folder, or to nothing"):
        read_dicom_series(folder)


def _set(name: str, value: Any, at: int | None = None) -> Callable[[int, Dataset], None]:
    def change(index: int, slice_: Dataset) -> None:
        if at is None or index == at:
            setattr(slice_, name, value)

    return change


def _lose(name: str) -> Callable[[int, Dataset], None]:
    return lambda index, slice_: delattr(slice_, name)


def _tilt(index: int, slice_: Dataset) -> None:
    slice_.ImagePositionPatient = [-10.0, 20.0 + 0.6 * index, 30.0 + 2.5 * index]


def _beside(index: int, slice_: Dataset) -> None:
    if 1 < index < 4:
        slice_.ImagePositionPatient = [-10.0 + 6.0, 20.0, 30.0 + 2.5 * index]


def _zigzag(index: int, slice_: Dataset) -> None:
    slice_.ImagePositionPatient = [-10.0 + 0.5 * (index % 2), 20.0, 30.0 + 2.5 * index]


def _phases(index: int, slice_: Dataset) -> None:
    slice_.AcquisitionNumber = 1 + index % 2


def _raw(name: str, vr: str, value: bytes) -> Callable[[int, Dataset], None]:
    """Bytes as a faulty exporter writes them."""

    def change(index: int, slice_: Dataset) -> None:
        tag = pydicom.tag.Tag(name)
        slice_[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_beside, "3.6 mm beside the line"),
        (_zigzag, "mm beside the line"),
        (_phases, "2 acquisitions lie between each other"),
        (_set("PhotometricInterpretation", "PALETTE COLOR"), "colour"),
        (_set("PhotometricInterpretation", "MONOCHROME1", 1), "inverted grey"),
        (_set("ModalityLUTSequence", Sequence([Dataset()])), "look-up table in place of HU"),
        (_set("PixelSpacing", [0.9, 0.82], 3), "differ in PixelSpacing: the far corner of .* 0.12 mm"),
        (_raw("PixelSpacing", "DS", b"0.9\\0,8 "), "PixelSpacing isn't 2 numbers"),
        (_raw("ImagePositionPatient", "DS", b"1\\nan\\2"), "ImagePositionPatient isn't 3 numbers"),
        (_raw("Rows", "US", b"\1\0\2\0"), "Rows isn't a number"),
        (_raw("RescaleSlope", "DS", b"two "), "can't be decoded"),
        (_set("SeriesInstanceUID", generate_uid(), 2), "2 series in one folder"),
        (_set("PixelSpacing", [0.9, 0.7], 1), "differ in PixelSpacing"),
        (_set("Columns", 6, 1), "differ in rows and columns"),
        (_set("Modality", "MR", 1), "differ in modality"),
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
        (_tilt, "gantry tilted by 13.5 degrees"),
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
    for path in by_place(tmp_path)[3 : 3 + lost]:
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


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"US\2\0", b"ZZ\2\0"), (b"US\2\0", b"US\3\0"), (b"US\2\0", b"US\xff\xff")],
    ids=["unknown type", "odd length", "too long"],
)
def test_what_the_parser_stumbles_over_names_the_file(tmp_path: Path, old: bytes, new: bytes) -> None:
    """A value of an unknown type or an impossible length is a refusal that names its file."""
    written(tmp_path, scan())
    path = by_place(tmp_path)[2]
    body, rows = path.read_bytes(), b"\x28\0\x10\0"
    assert body.count(rows + old) == 1
    path.write_bytes(body.replace(rows + old, rows + new))
    with pytest.raises(VolumeError) as caught:
        read_dicom_series(tmp_path)
    assert str(path) in str(caught.value)


def test_rounded_headers_are_one_grid(tmp_path: Path) -> None:
    """Directions and spacings that differ in the eighth decimal, and places with two, are read."""

    def change(index: int, slice_: Dataset) -> None:
        off = 1e-8 * (-1) ** index
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 0.99950374 + off, 0.0315 + off]
        slice_.PixelSpacing = [f"{0.4885 + off:.8f}"] * 2
        place = 0.6667 * index * np.array([0, -0.0315, 0.99950374])
        slice_.ImagePositionPatient = [f"{mm:.2f}" for mm in place]

    written(tmp_path, scan(9), change=change)
    volume = read_dicom_series(tmp_path)
    assert np.array_equal(volume.array, scan(9))
    assert volume.spacing_mm == pytest.approx((0.4885, 0.4885, 0.6667), abs=0.01)


def test_acquisitions_one_after_the_other_are_one_volume(tmp_path: Path) -> None:
    """A scanner that steps along the patient and numbers each step has scanned one volume."""
    written(tmp_path, scan(6), change=lambda i, slice_: setattr(slice_, "AcquisitionNumber", i // 2))
    assert np.array_equal(read_dicom_series(tmp_path).array, scan(6))


def test_one_echo_time_written_in_two_ways_is_one_acquisition(tmp_path: Path) -> None:
    """Slices that take turns in how they write the same echo time are one volume."""
    written(
        tmp_path, scan(6), change=lambda i, slice_: setattr(slice_, "EchoTime", ("4.2", "4.20")[i % 2])
    )
    assert np.array_equal(read_dicom_series(tmp_path).array, scan(6))


def test_a_modality_look_up_table_is_applied(tmp_path: Path) -> None:
    """Where a table stands in place of slope and intercept, the values are the table's."""
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [2048, 0, 16], "US"
    table.add_new("LUTData", "OW", (np.arange(2048, dtype="<u2")[::-1] * 3).tobytes())

    def change(index: int, slice_: Dataset) -> None:
        del slice_.RescaleSlope, slice_.RescaleIntercept
        slice_.Modality, slice_.ModalityLUTSequence = "MR", Sequence([table])

    written(tmp_path, scan(), change=change)
    stored = (scan().astype(np.int32) + 1024) // 2
    assert np.array_equal(read_dicom_series(tmp_path).array, (2047 - stored) * 3)


def test_a_failure_without_words_still_says_what_it_is(tmp_path: Path) -> None:
    """An exception without a text is named by its type."""
    assert reason(EOFError()) == "EOFError"
    assert reason(ValueError("odd\n length ")) == "odd length"
