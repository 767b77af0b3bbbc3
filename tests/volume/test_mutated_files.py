"""Whatever bytes a file holds, it is read as its own header says, or refused by its name."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian

from segdistill.volume import Volume, VolumeError, read_dicom_series, read_label_map, read_volume
from tests.dicom_compressed import EXACT
from tests.dicom_series import scan, written
from tests.mutated import mutated_files, mutations

FILES, SLICES = 60, 32  # of each kind
IN_MM = {1: 1e3, 3: 1e-3}  # NIfTI's codes of metre and micron; others are mm


def refusal(read: Callable[[Path], Volume], path: Path) -> Volume | None:
    """The volume, or None for a refusal that names the path and says why; nothing else may happen."""
    try:
        return read(path)
    except VolumeError as error:
        message = str(error)
        assert str(path) in message
        assert len(message) > len(str(path)) + 20
        assert "\n" not in message
        return None


def said_by_nibabel(body: bytes) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine in mm of a file's bytes."""
    if body[:2] == b"\x1f\x8b":
        body = gzip.GzipFile(fileobj=io.BytesIO(body)).read(700)  # the header, whatever comes after
    if body[4:7] == b"n+2":
        body = body[:8] + b"\r\n\x1a\n" + body[12:]  # a mark of text conversion, nothing of the grid
    kind = next(
        kind
        for kind, size in ((nib.Nifti1Image, 348), (nib.Nifti2Image, 540), (nib.MGHImage, 1))
        if size in (int.from_bytes(body[:4], order) for order in ("little", "big"))
    )
    image = kind.from_bytes(body)
    affine = image.affine.copy()
    if kind is not nib.MGHImage:
        affine[:3] *= IN_MM.get(int(image.header["xyzt_units"]) % 8, 1.0)
    return image.shape, affine


def test_an_altered_file_is_read_on_its_own_grid_or_refused(tmp_path: Path) -> None:
    """NIfTI-1, NIfTI-2 and MGZ, packed or not, with altered bytes: its own grid, or a refusal."""
    read, all_of_them = 0, 0
    for number, (name, body) in enumerate(mutated_files(FILES)):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(body)
        for reader in (read_volume, read_label_map):
            volume = refusal(reader, path)
            all_of_them += 1
            if volume is not None:
                shape, affine = said_by_nibabel(body)
                assert volume.array.shape == shape[:3], path
                assert set(shape[3:]) <= {1}, path
                np.testing.assert_allclose(
                    volume.affine, affine, rtol=1e-5, atol=1e-5, err_msg=str(path)
                )
                read += 1
        path.unlink()
    assert 0.1 * all_of_them < read < 0.9 * all_of_them  # both ends are tried


def _implicit(index: int, slice_: Dataset) -> None:
    slice_.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


SERIES = {"explicit": lambda index, slice_: None, "implicit": _implicit, "bare": _implicit, **EXACT}


@pytest.mark.parametrize("kind", SERIES)
def test_an_altered_slice_is_read_where_it_says_or_refused(tmp_path: Path, kind: str) -> None:
    """A DICOM series with altered bytes in one slice: every file where it says, or a refusal."""
    written(tmp_path, scan(4), change=SERIES[kind])
    paths = sorted(tmp_path.iterdir())
    if kind == "bare":
        for path in paths:
            slice_ = pydicom.dcmread(path)
            slice_.preamble, slice_.file_meta = None, FileMetaDataset()
            slice_.save_as(path, implicit_vr=True, little_endian=True)
    read = 0
    for seed, path in enumerate(paths):
        intact = path.read_bytes()
        for altered in mutations(intact, len(intact) - 100, SLICES // len(paths), seed):
            path.write_bytes(altered)
            volume = refusal(read_dicom_series, tmp_path)
            if volume is not None:
                check_places(volume, paths)
                read += 1
        path.write_bytes(intact)
    assert 0 < read < SLICES
    assert np.array_equal(read_dicom_series(tmp_path).array, scan(4))


def check_places(volume: Volume, paths: list[Path]) -> None:
    """Check that each file's corners, as pydicom reads them, are those of one plane of the volume."""
    planes = set()
    for path in paths:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        assert volume.array.shape == (header.Columns, header.Rows, len(paths)), path
        place = np.array(header.ImagePositionPatient, float)
        along = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        rows, columns = (float(mm) for mm in header.PixelSpacing)
        corners = [(i, j) for i in (0, header.Columns - 1) for j in (0, header.Rows - 1)]
        own = [place + i * columns * along[0] + j * rows * along[1] for i, j in corners]
        far = []
        for k in range(len(paths)):
            ras = [(volume.affine @ [i, j, k, 1])[:3] for i, j in corners]
            far.append(np.linalg.norm(np.array(own) * [-1, -1, 1] - ras, axis=1).max())
        planes.add(int(np.argmin(far)))
        # The line and the plane may each be missed by a tenth of the smallest edge.
        assert min(far) <= 0.2 * min(volume.spacing_mm), path
    assert len(planes) == len(paths)
