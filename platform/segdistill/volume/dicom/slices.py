"""One slice of a series: what its header says about its place, its size and its values.

A file is one slice, or, in enhanced DICOM, one slice a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    MediaStorageDirectoryStorage,
)

from segdistill.volume.grid import VolumeError, reason

_NEEDED = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
# What tells the acquisitions of a series apart that are no volume together; below, as frames say it.
_ACQUISITION = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoTime",
    "ImageType",
    "ConvolutionKernel",
    "FrameAcquisitionNumber",
    "TemporalPositionIndex",
    "EffectiveEchoTime",
    "FrameType",
)
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SCALE = ("RescaleIntercept", "RescaleType", "ModalityLUTSequence")
_PIXELS = ("NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "LossyImageCompression")
_READ = ("SeriesInstanceUID", "Modality", *_NEEDED, *_ACQUISITION, *_SCALE, *_PIXELS, *_GROUPS)
_GROUP_TAGS = tuple(Tag(name) for name in _GROUPS)
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)


@dataclass(frozen=True, eq=False)
class Slice:
    """A grey slice with a place in the patient.

    Attributes:
        path: its file.
        frame: which frame of an enhanced file it is, from 0 on; None: the file's only slice.
        series: SeriesInstanceUID.
        modality: e.g. ``CT``.
        shape: rows, columns.
        position: (3,) patient coordinates (left, back, up) of the first pixel's centre, in mm.
        cosines: (2, 3) unit vectors along a row and down a column.
        spacing: (2,) distance of neighbours along a row and down a column, in mm.
        acquisition: what tells acquisitions apart, by attribute.
        lossy: whether its pixels were ever compressed with loss.
    """

    path: Path
    frame: int | None
    series: str
    modality: str
    shape: tuple[int, int]
    position: NDArray[np.float64]
    cosines: NDArray[np.float64]
    spacing: NDArray[np.float64]
    acquisition: dict[str, str]
    lossy: bool


def read_slices(paths: Sequence[Path]) -> list[Slice]:
    """Read the headers of all files; a DICOMDIR, which only lists others, is left out.

    Raises:
        VolumeError: a file is damaged, or not a grey slice, or frames, with a place in the patient.
    """
    return [one for path in paths for one in _read(path)]


def frame_header(header: Dataset, frame: int | None) -> Dataset:
    """What an enhanced file says of one frame, as the header of a file with that slice alone.

    The attributes of the functional groups (PS3.3 C.7.6.16), shared ones and then the frame's own, are
    lifted out of their sequences.

    Args:
        header: of the file, its pixels aside.
        frame: from 0 on; None: of a file with a single slice, which is given back.
    """
    if frame is None:
        return header
    flat = Dataset()
    flat.file_meta = header.file_meta
    flat.update({tag: element for tag, element in header.items() if element.tag not in _GROUP_TAGS})
    shared, own = (header.get(name) for name in _GROUPS)
    for groups in (*(shared or ())[:1], own[frame]):
        for group in groups:
            if group.VR == "SQ" and len(group.value) == 1:
                flat.update(group.value[0])
    return flat


def _read(path: Path) -> list[Slice]:
    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(_READ))
        if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return []
        if "PerFrameFunctionalGroupsSequence" not in header:
            return [_slice(path, header, None)]
        frames = len(header.PerFrameFunctionalGroupsSequence)
        if frames != header.get("NumberOfFrames"):
            raise VolumeError(
                f"{path}: {header.get('NumberOfFrames')} frames, {frames} of them with a place. Export "
                "it again."
            )
        return [_slice(path, frame_header(header, frame), frame) for frame in range(frames)]
    except VolumeError:
        raise
    except Exception as error:  # whatever the parser stumbles over, at once or when a value is asked for
        raise VolumeError(
            f"{path}: the DICOM header can't be read ({reason(error)}). Export it again, or take it out "
            "of the folder."
        ) from error


def _slice(path: Path, header: Dataset, frame: int | None) -> Slice:
    if not any(name in header for name in _READ):
        raise VolumeError(
            f"{path}: nothing can be read in it, as after an interrupted copy. Copy it again, or take "
            "it out of the folder."
        )
    several = _given(header, "NumberOfFrames") and _numbers(path, header, "NumberOfFrames", 1) > 1
    if several and frame is None:
        raise VolumeError(
            f"{path}: several frames in one file, without their places. Export the series as single "
            "slices, or as enhanced DICOM."
        )
    missing = [name for name in _NEEDED if not _given(header, name)]
    if missing:
        raise VolumeError(
            f"{path}: not a slice of a volume, it has no {', '.join(missing)}. Take scouts and reports "
            "out of the folder; if it should be a slice, export it again."
        )
    shown = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if shown == "MONOCHROME1":
        raise VolumeError(
            f"{path}: inverted grey (MONOCHROME1), bright and dark are exchanged. Export the series as "
            "MONOCHROME2."
        )
    colours = _given(header, "SamplesPerPixel") and _numbers(path, header, "SamplesPerPixel", 1) != 1
    if shown != "MONOCHROME2" or colours:
        raise VolumeError(f"{path}: a colour image ({shown[:16]}). Export the grey-scale series.")
    modality = str(header.get("Modality") or "")
    if modality == "CT":
        _check_hu(path, header)
    rows, columns = (int(_numbers(path, header, name, 1)[0]) for name in ("Rows", "Columns"))
    between_rows, between_columns = _numbers(path, header, "PixelSpacing", 2)
    cosines = _numbers(path, header, "ImageOrientationPatient", 6).reshape(2, 3)
    # Cosines are written in decimals, often few; that alone doesn't make a header wrong.
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
        raise VolumeError(
            f"{path}: ImageOrientationPatient isn't two right-angled directions. Export it again."
        )
    if min(rows, columns) < 1 or min(between_rows, between_columns) <= 0:
        raise VolumeError(f"{path}: Rows, Columns and PixelSpacing must be above 0. Export it again.")
    syntax = header.file_meta.get("TransferSyntaxUID")
    return Slice(
        path=path,
        frame=frame,
        series=str(header.get("SeriesInstanceUID") or ""),
        modality=modality,
        shape=(rows, columns),
        position=_numbers(path, header, "ImagePositionPatient", 3),
        cosines=cosines / np.linalg.norm(cosines, axis=1, keepdims=True),
        spacing=np.array([between_columns, between_rows]),
        acquisition={name: _written(header.get(name)) for name in _ACQUISITION},
        lossy=str(header.get("LossyImageCompression") or "") == "01" or syntax in _LOSSY,
    )


def _given(header: Dataset, name: str) -> bool:
    """Whether an attribute is there and not empty; its value isn't looked at yet."""
    return name in header and header.get_item(name).value not in (None, b"", "")


def _written(value: object) -> str:
    """An attribute's value for comparison; numbers by value, since 4.2 may also be written 4.20."""
    return f"{float(value):.6g}" if isinstance(value, float) else str(value or "")


def _numbers(path: Path, header: Dataset, name: str, count: int) -> NDArray[np.float64]:
    """``count`` finite numbers of an attribute."""
    try:
        found = np.atleast_1d(np.array(header[name].value, np.float64))
    except Exception:  # what it holds instead isn't repeated: it may be anything of the header
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        wanted = "a number" if count == 1 else f"{count} numbers"
        raise VolumeError(f"{path}: {name} isn't {wanted}. Export it again.")
    return found


def _check_hu(path: Path, header: Dataset) -> None:
    if header.get("ModalityLUTSequence"):
        raise VolumeError(f"{path}: a CT with a look-up table in place of HU. Export it in HU.")
    if not _given(header, "RescaleIntercept"):
        raise VolumeError(f"{path}: a CT without RescaleIntercept has no HU scale. Export it again.")
    unit = str(header.get("RescaleType") or "HU")
    if unit != "HU":
        raise VolumeError(f"{path}: values are {unit[:16]!r}, not HU. Export the CT in HU.")
