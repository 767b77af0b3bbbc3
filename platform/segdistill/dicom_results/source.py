"""The series that was segmented, as its results refer to it."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat

from segdistill.files import SegdistillError
from segdistill.volume import Volume
from segdistill.volume.dicom.series import ordered_slices

# By these a PACS files the results with the series: the patient, the study, and how texts are spelt.
_FILED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
_IMAGE = (
    "Modality",
    "Rows",
    "Columns",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
# highdicom asks for these; ours come from _FILED, byte for byte.
_ASKED_FOR = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)


class DicomResultError(SegdistillError):
    """Results that can't be written; the message names what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Source:
    """A series, without its pixels.

    Attributes:
        images: the headers of its slices in the volume's order, or of its one enhanced file, without any
            field that names a patient and with the places that the volume's grid has.
        grid: the volume's grid without voxels, axes as :func:`~segdistill.volume.read_volume` has them.
        places: for each slice, or each frame of the enhanced file, its number in the volume.
        filed: the elements by which a PACS files a result with the series, as the first slice has them.
    """

    images: tuple[Dataset, ...]
    grid: Volume
    places: NDArray[np.intp]
    filed: tuple[RawDataElement, ...]

    def frames(self, labels: NDArray[np.uint8], numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels (X, Y, Z) on the grid as frames (Z, rows, columns) in the order of the files or frames.

        Args:
            labels: label codes.
            numbers: (256,) what stands in a frame for each code.
        """
        x, y, z = labels.shape
        frames = np.empty((z, y, x), np.uint8)
        for frame, place in zip(frames, self.places, strict=True):
            frame[:] = numbers[labels[:, :, place].T]
        return frames

    @property
    def series(self) -> str:
        """SeriesInstanceUID."""
        return str(self.images[0].SeriesInstanceUID)


def read_source(folder: Path) -> Source:
    """Read the headers of the one series that lies below a folder.

    Raises:
        VolumeError: what :func:`~segdistill.volume.read_dicom_series` says of a header.
        DicomResultError: the series lacks what a result must refer to, or is of two studies.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote values of the header
        slices, affine = ordered_slices(folder)
        headers = [
            pydicom.dcmread(
                path, force=True, stop_before_pixels=True, specific_tags=[*_FILED, *_UIDS, *_IMAGE]
            )
            for path in dict.fromkeys(one.path for one in slices)
        ]
        filed = [element for name in _FILED if (element := _as_written(headers[0], name)) is not None]
        images = tuple(_nameless(header) for header in headers)
    _check_uids(folder, images)
    rows, columns = slices[0].shape
    grid = Volume(np.zeros((columns, rows, len(slices)), np.uint8), affine).emptied()
    places = np.argsort([place if one.frame is None else one.frame for place, one in enumerate(slices)])
    if slices[0].frame is None:
        for place, image in enumerate(images):
            image.update(_on_grid(grid, place))
    else:
        _put_frames_on_grid(images[0], grid, places)
    return Source(images, grid, places, tuple(filed))


def _as_written(header: Dataset, name: str) -> RawDataElement | None:
    """An element with the bytes that the file has: only those surely mean the same to the PACS."""
    tag = Tag(name)
    if tag not in header:
        return None
    element = header.get_item(tag)
    if not isinstance(element, RawDataElement):  # read ahead: the character set itself
        values = [element.value] if isinstance(element.value, str) else element.value or []
        value = "\\".join(values).encode("ascii", "replace")
    else:
        value = element.value or b""
    value += b" " * (len(value) % 2)
    return RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def _nameless(header: Dataset) -> Dataset:
    image = Dataset()
    for name in (*_UIDS, *_IMAGE):
        with suppress(ValueError, TypeError, OverflowError):  # what isn't a number is as good as absent
            if header.get(name) not in (None, ""):
                image[name] = header[name]
    for name in _ASKED_FOR:
        setattr(image, name, None)
    return image


def _on_grid(grid: Volume, place: int) -> Dataset:
    """Where the volume's grid has a slice, as its header says it.

    Headers differ by rounding from slice to slice, which writers and readers of SEG refuse or take for a
    gap; and some state another distance of the slices than they have.
    """
    lps = grid.affine[:3] * _RAS_TO_LPS[:, None]
    x, y, z = grid.spacing_mm
    at = Dataset()
    at.ImageOrientationPatient = _decimals(*(lps[:, 0] / x), *(lps[:, 1] / y))
    at.ImagePositionPatient = _decimals(*(lps[:, 2] * place + lps[:, 3]))
    at.PixelSpacing = _decimals(y, x)
    at.SpacingBetweenSlices = at.SliceThickness = _decimals(z)[0]
    return at


def _put_frames_on_grid(image: Dataset, grid: Volume, places: NDArray[np.intp]) -> None:
    """The same for an enhanced file, whose functional groups say it; vendors differ in which of them."""

    def group(place: int, **macros: tuple[str, ...]) -> Dataset:
        at, item = _on_grid(grid, place), Dataset()
        for macro, names in macros.items():
            inner = Dataset()
            inner.update({at[name].tag: at[name] for name in names})
            setattr(item, macro, [inner])
        return item

    image.NumberOfFrames = len(places)
    image.SharedFunctionalGroupsSequence = [
        group(
            0,
            PlaneOrientationSequence=("ImageOrientationPatient",),
            PixelMeasuresSequence=("PixelSpacing", "SpacingBetweenSlices", "SliceThickness"),
        )
    ]
    image.PerFrameFunctionalGroupsSequence = [
        group(int(place), PlanePositionSequence=("ImagePositionPatient",)) for place in places
    ]


def _decimals(*values: float) -> list[DSfloat]:
    return [DSfloat(value + 0.0, auto_format=True) for value in values]  # no -0


def _check_uids(folder: Path, images: Sequence[Dataset]) -> None:
    for name in _UIDS:
        if not all(name in image for image in images):
            raise DicomResultError(
                f"{folder}: a slice has no {name}, so no result can refer to it. Export the series from "
                "the PACS again."
            )
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID"):
        if len({image[name].value for image in images}) > 1:
            raise DicomResultError(
                f"{folder}: the slices differ in {name}, so no single result can refer to them. Export "
                "the series from the PACS again."
            )
    if len({image.SOPInstanceUID for image in images}) < len(images):
        raise DicomResultError(
            f"{folder}: two slices have one SOPInstanceUID, so a result can't tell them apart. Export "
            "the series from the PACS again."
        )
