import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segdistill.volume import VolumeError, read_label_map, read_volume, write_volume
from segdistill.volume.memory import TooLittleMemoryError

SHAPE = (12, 11, 10)


@pytest.fixture
def voxels():
    """Voxels of a small int16 scan."""
    return np.random.default_rng(3).integers(0, 900, SHAPE).astype(np.int16)


def save(path: Path, array, affine=None, **header) -> Path:
    """A NIfTI file with single header fields set to raw values, as a faulty exporter would."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    path.write_bytes(image.to_bytes())
    raw = bytearray(path.read_bytes())
    changed = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for field, value in header.items():
        changed[field] = value
    raw[:348] = changed.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


def refused(path: Path, *words: str) -> None:
    """Check that reading fails, naming the file and saying ``words``."""
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word.lower() in message.lower(), message


def test_missing_file(tmp_path):
    """A path without a file is refused and the path named."""
    refused(tmp_path / "none.nii.gz", "no such file", "check the path")


def test_folder(tmp_path):
    """A folder in place of a file is refused."""
    refused(tmp_path, "folder", ".nii.gz")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"PNG and so on", b"\0" * 2000], ids=len)
def test_not_a_nifti(tmp_path, content):
    """Bytes that are no NIfTI are refused and the accepted kinds named."""
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    if content.startswith(b"\x1f\x8b"):
        refused(path, "truncated", "again")
    else:
        refused(path, "not a NIfTI", ".nii.gz", ".mgz")


def test_one_dicom_file(tmp_path):
    """A DICOM file in the place of a scan is called one, and the remedy is to convert its series."""
    path = tmp_path / "IM0001"
    path.write_bytes(bytes(128) + b"DICM" + bytes(400))
    refused(path, "DICOM file", "Convert the series")


def test_gzipped_text(tmp_path):
    """A compressed file of something else is refused as no NIfTI."""
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(b"hello " * 300))
    refused(path, "not a NIfTI", ".nii.gz")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated_gzip(tmp_path, voxels, share):
    """A compressed scan that ends early is refused wherever it ends."""
    path = save(tmp_path / "scan.nii.gz", voxels)
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])
    refused(path, "truncated", "again")


def test_truncated_plain(tmp_path, voxels):
    """An uncompressed scan that ends early is refused."""
    path = save(tmp_path / "scan.nii", voxels)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "truncated", "again")


def test_damaged_gzip(tmp_path, voxels):
    """A compressed scan with a flipped byte in its checksum is refused."""
    path = save(tmp_path / "scan.nii.gz", voxels)
    body = bytearray(path.read_bytes())
    body[-6] ^= 0xFF
    path.write_bytes(bytes(body))
    refused(path, "damaged", "again")


def test_time_series(tmp_path):
    """A 4D series is refused with its shape and the advice to split it."""
    path = save(tmp_path / "scan.nii", np.random.default_rng(0).random((*SHAPE, 3), np.float32))
    refused(path, "4 axes", "(12, 11, 10, 3)", "split")


@pytest.mark.parametrize("shape", [(12, 11), (12, 11, 1), (1, 12, 11)])
def test_single_slice(tmp_path, shape):
    """A 2D image or an axis of one voxel is refused with the advice to export the series."""
    path = save(tmp_path / "scan.nii", np.random.default_rng(0).random(shape, np.float32))
    refused(path, "single slice", "whole series")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, value):
    """One voxel that isn't a finite number is enough to refuse a scan."""
    array = np.random.default_rng(0).random(SHAPE, np.float32)
    array[3, 4, 5] = value
    refused(save(tmp_path / "scan.nii", array), "NaN or infinite", "replace them")


def test_zero_spacing(tmp_path, voxels):
    """A voxel size of zero in the header is refused though sform would stand in for it."""
    path = save(tmp_path / "scan.nii", voxels, pixdim=[1, 1, 0, 1, 1, 1, 1, 1])
    refused(path, "voxel size 1 x 0 x 1 mm", "repair the header")


@pytest.mark.parametrize("size", [0.001, 25.0, 2000.0])
def test_absurd_spacing(tmp_path, voxels, size):
    """A voxel size that no scanner has is refused with the size and the accepted range."""
    path = save(tmp_path / "scan.nii", voxels, np.diag([1, 1, size, 1]))
    refused(path, f"1 x 1 x {size:g} mm", "0.05 to 20", "units")


def test_singular_affine(tmp_path, voxels):
    """An affine with two axes in one direction is refused."""
    path = save(
        tmp_path / "scan.nii",
        voxels,
        sform_code=1,
        srow_x=[2, 2, 0, 0],
        srow_y=[0, 0, 1, 0],
        srow_z=[0, 0, 1, 0],
    )
    refused(path, "singular", "sform and qform")


def test_affine_not_a_number(tmp_path, voxels):
    """An affine with NaN in it is refused."""
    refused(
        save(tmp_path / "scan.nii", voxels, sform_code=1, srow_x=[np.nan, 0, 0, 0]), "affine", "repair"
    )


@pytest.mark.parametrize("value", [0, 7])
def test_empty_constant(tmp_path, value):
    """A scan with one intensity everywhere is refused as empty."""
    path = save(tmp_path / "scan.nii", np.full(SHAPE, value, np.int16))
    refused(path, "empty", f"every voxel is {value}", "right series")


def test_empty_no_voxels(tmp_path, voxels):
    """A scan whose header gives an axis of zero voxels is refused as empty."""
    refused(save(tmp_path / "scan.nii", voxels, dim=[3, 12, 0, 10, 1, 1, 1, 1]), "empty", "again")


def test_complex_voxels(tmp_path):
    """Complex voxels are refused with the advice to export the magnitude."""
    array = np.ones(SHAPE, np.complex64) * (1 + 2j)
    refused(save(tmp_path / "scan.nii", array), "complex", "magnitude")


def test_colour_voxels(tmp_path):
    """Colour voxels are refused with the advice to export in grey."""
    array = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save(tmp_path / "scan.nii", array), "colour", "grey-scale")


def test_unknown_data_type(tmp_path, voxels):
    """A header with a data type that doesn't exist is refused."""
    refused(save(tmp_path / "scan.nii", voxels, datatype=9999), "header", "again")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_more_voxels_than_the_file_can_hold(tmp_path, voxels, name):
    """A small file whose header claims a huge scan is refused before reading, as a fault of the file."""
    refused(save(tmp_path / name, voxels, dim=[3, 32000, 32000, 32000, 1, 1, 1, 1]), "truncated", "hold")


def test_larger_than_memory(tmp_path, voxels, monkeypatch):
    """A whole scan that doesn't fit the memory is refused with both numbers, as no fault of the file."""
    monkeypatch.setattr("segdistill.volume.reading.available_bytes", lambda: 1e3)
    path = save(tmp_path / "scan.nii.gz", voxels)
    with pytest.raises(TooLittleMemoryError, match=r"scan\.nii\.gz.*needs 0\.0 GB.*0\.0 GB are free"):
        read_volume(path)


def test_label_map_with_fractions(tmp_path):
    """A scan or probability map in place of a label map is refused."""
    path = tmp_path / "label.nii"
    write_volume(path, np.random.default_rng(0).random(SHAPE, np.float32), np.eye(4))
    with pytest.raises(VolumeError, match=r"label\.nii.*whole numbers.*label map"):
        read_label_map(path)
