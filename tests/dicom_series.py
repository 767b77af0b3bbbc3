"""A small CT series, written as one file a slice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

SERIES = generate_uid(entropy_srcs=["series"])
STUDY = generate_uid(entropy_srcs=["study"])
FRAME_OF_REFERENCE = generate_uid(entropy_srcs=["frame of reference"])


def written(
    folder: Path,
    hu: NDArray[np.int16],
    *,
    spacing: tuple[float, float, float] = (0.8, 0.9, 2.5),
    cosines: NDArray[np.float64] | None = None,
    origin: tuple[float, float, float] = (-10.0, 20.0, 30.0),
    change: Callable[[int, Dataset], Any] = lambda index, slice_: None,
    signed: bool = False,
) -> NDArray[np.float64]:
    """Write (columns, rows, slices) HU as one file a slice, in random order; gives the LPS affine.

    ``signed`` stores 12 bits with sign, else 16 without.
    """
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
        slice_.StudyInstanceUID, slice_.FrameOfReferenceUID = STUDY, FRAME_OF_REFERENCE
        slice_.PatientName, slice_.InstanceNumber = "Nobody^Real", int(names[index])
        slice_.Columns, slice_.Rows = hu.shape[:2]
        slice_.PixelSpacing = [spacing[1], spacing[0]]
        slice_.ImageOrientationPatient = [round(float(n), 8) for n in cosines.ravel()]
        place = np.array(origin) + index * step
        slice_.ImagePositionPatient = [round(float(n), 6) for n in place]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.RescaleSlope, slice_.RescaleIntercept = 2, 0 if signed else -1024
        stored = (hu[:, :, index].T.astype(np.int32) - int(slice_.RescaleIntercept)) // 2
        if signed:
            slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 12, 11, 1
        slice_.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
        change(index, slice_)
        # Raw elements keep their bytes, also where they aren't of the character set.
        syntax = slice_.file_meta.TransferSyntaxUID
        correct_ambiguous_vr(slice_, syntax.is_little_endian)
        characters = slice_.get("SpecificCharacterSet")
        slice_.set_original_encoding(
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            convert_encodings(characters) if characters else default_encoding,
        )
        slice_.save_as(folder / f"{names[index]:03d}", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[0] * spacing[0], cosines[1] * spacing[1]
    affine[:3, 2], affine[:3, 3] = step, origin
    return affine


def enhanced(folder: Path, change: Callable[[Dataset], Any] = lambda whole: None) -> Path:
    """Put a folder's slices into one file of enhanced CT, its frames in the order of their names."""
    paths = sorted(folder.iterdir())
    slices = [pydicom.dcmread(path) for path in paths]
    whole = Dataset()
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID = EnhancedCTImageStorage
    whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID = slices[0].SOPInstanceUID
    for element in slices[0]:
        if element.keyword not in (*_OF_FRAMES, "SOPClassUID", "SOPInstanceUID", "PixelData"):
            whole.add(element)
    whole.NumberOfFrames = len(slices)
    whole.SharedFunctionalGroupsSequence = [
        _groups(slices[0], "PixelMeasures", "PixelValueTransformation")
    ]
    whole.PerFrameFunctionalGroupsSequence = [
        _groups(one, "PlanePosition", "PlaneOrientation") for one in slices
    ]
    whole.PixelData = b"".join(one.PixelData for one in slices)
    change(whole)
    for path in paths:
        path.unlink()
    whole.save_as(folder / "enhanced", enforce_file_format=True)
    return folder / "enhanced"


_MACROS = {
    "PixelMeasures": ("PixelSpacing",),
    "PixelValueTransformation": ("RescaleSlope", "RescaleIntercept"),
    "PlanePosition": ("ImagePositionPatient",),
    "PlaneOrientation": ("ImageOrientationPatient",),
}
_OF_FRAMES = tuple(name for names in _MACROS.values() for name in names)


def _groups(slice_: Dataset, *macros: str) -> Dataset:
    groups = Dataset()
    for macro in macros:
        inner = Dataset()
        for name in _MACROS[macro]:
            inner[name] = slice_[name]
        setattr(groups, f"{macro}Sequence", [inner])
    return groups


def scan(slices: int = 5) -> NDArray[np.int16]:
    """(7, 6, slices) even HU from air to bone, every voxel another one."""
    values = np.linspace(-1024, 1500, 7 * 6 * slices) // 2 * 2
    return np.random.default_rng(1).permutation(values).astype(np.int16).reshape(7, 6, slices)
