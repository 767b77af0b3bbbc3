"""A compressed DICOM series is the volume that the uncompressed one is."""

import logging
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from segdistill.volume import VolumeError, read_dicom_series
from tests.dicom_compressed import EXACT, compressed, jpeg, jpeg_2000, packed
from tests.dicom_series import scan, written


@pytest.mark.parametrize("signed", [False, True], ids=["16 bits", "12 bits with sign"])
@pytest.mark.parametrize("name", EXACT)
def test_a_losslessly_compressed_series_is_the_uncompressed_one(
    tmp_path: Path, name: str, signed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each lossless compression that archives store gives the same voxels and the same place."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    written(tmp_path / "plain", scan(), signed=signed)
    written(tmp_path / "packed", scan(), signed=signed, change=EXACT[name])
    plain, packed = (read_dicom_series(tmp_path / kind) for kind in ("plain", "packed"))
    assert np.array_equal(packed.array, scan())
    assert np.array_equal(packed.affine, plain.affine)
    assert not caplog.records


@pytest.mark.parametrize(
    "uid", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_every_way_of_writing_the_header_gives_the_same(tmp_path: Path, uid: UID) -> None:
    """Implicit, deflated and big-endian files give the same voxels."""

    def change(index: int, slice_: Dataset) -> None:
        slice_.file_meta.TransferSyntaxUID = uid
        if uid == ExplicitVRBigEndian:
            slice_.PixelData = np.frombuffer(slice_.PixelData, "<u2").byteswap().tobytes()

    written(tmp_path, scan(), change=change)
    assert np.array_equal(read_dicom_series(tmp_path).array, scan())


def _eight_bits(index: int, slice_: Dataset) -> None:
    stored = np.frombuffer(slice_.PixelData, "<u2").reshape(slice_.Rows, slice_.Columns)
    slice_.BitsAllocated = slice_.BitsStored = 8
    slice_.HighBit, slice_.RescaleSlope = 7, 16
    frame = imagecodecs.jpeg8_encode((stored // 8).astype(np.uint8), level=100)
    slice_.PixelData = encapsulate([frame])
    slice_.file_meta.TransferSyntaxUID = JPEGBaseline8Bit


LOSSY = {
    "JPEG-LS near lossless": (compressed(JPEGLSNearLossless, jls_error=2), 4),
    "JPEG extended, 12 bits": (packed(JPEGExtended12Bit, jpeg(bitspersample=12, level=100)), 8),
    "JPEG baseline": (_eight_bits, 48),
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_series_is_read_and_said_to_be_lossy(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A series compressed with loss is read nearly as it was, and the log says so without its name."""
    change, hu = LOSSY[name]

    def narrow(index: int, slice_: Dataset) -> None:
        slice_.BitsStored, slice_.HighBit = 12, 11
        change(index, slice_)

    written(tmp_path, scan(), change=narrow)
    with caplog.at_level(logging.WARNING):
        volume = read_dicom_series(tmp_path)
    assert np.abs(volume.array - scan()).max() <= hu
    assert [record.message for record in caplog.records] == [
        "the DICOM series was compressed with loss: its intensities aren't the scanner's"
    ]


def test_a_compression_without_a_decoder_is_named(tmp_path: Path) -> None:
    """A compression that nothing here decodes is refused by its name."""
    written(tmp_path, scan(), change=packed(HTJ2KLossless, jpeg_2000))
    with pytest.raises(VolumeError, match=r"High-Throughput JPEG 2000 .* can't be decoded"):
        read_dicom_series(tmp_path)


@pytest.mark.parametrize("name", ["JPEG lossless SV1", "JPEG 2000", "JPEG-LS"])
def test_a_frame_of_another_size_than_the_header_says_is_refused(tmp_path: Path, name: str) -> None:
    """The size in a compressed frame is never believed against the header's, nor unpacked first."""

    def change(index: int, slice_: Dataset) -> None:
        EXACT[name](index, slice_)
        slice_.Rows, slice_.Columns = slice_.Columns, slice_.Rows

    written(tmp_path, scan(), change=change)
    with pytest.raises(VolumeError, match="can't be decoded"):
        read_dicom_series(tmp_path)


def test_an_environment_without_the_decoders_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the service runs, without DICOM libraries, a folder is refused and the package named."""
    for module in ("series", "pixels"):
        monkeypatch.delitem(sys.modules, f"segdistill.volume.dicom.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(VolumeError, match="the package imagecodecs isn't installed"):
        read_dicom_series(tmp_path)
