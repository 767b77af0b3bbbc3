"""Reading one DICOM series, a folder of single-frame slices, as a volume."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.volume.grid import Volume, VolumeError, check_volume
from segdistill.volume.memory import TooLittleMemoryError, available_bytes

# Share of the distance between slices by which a position may be off: what writing it in decimals does.
_UNEVEN = 0.02
# DICOM's patient coordinates run to the left and to the back, ours (RAS) to the right and to the front.
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_NEEDED = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do: a preamble of 128 bytes, then ``DICM``."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_dicom_series(folder: Path) -> Volume:
    """Read the one series that a folder holds; other files than DICOM are left alone.

    Slices are ordered by where they are (ImagePositionPatient along the normal of
    ImageOrientationPatient), never by name or number. Nothing of the header but the geometry and the
    scale of the intensities is kept, so no patient field goes anywhere.

    Returns:
        The scan: axes along the image's rows, its columns and from slice to slice; float32 with
        RescaleSlope and RescaleIntercept applied, so HU for CT; affine to RAS mm.

    Raises:
        VolumeError: no slice or a single one, several series, slices that differ in size, orientation or
            voxel size, two slices at one place, a missing slice or uneven distances, a tilted gantry,
            several frames in one file, colour, pixels that can't be decoded, a CT without its HU scale,
            or what :func:`~segdistill.volume.check_volume` refuses.
        TooLittleMemoryError: larger than the memory that is free.
    """
    files = sorted(path for path in folder.iterdir() if path.name != "DICOMDIR" and is_dicom(path))
    if not files:
        raise VolumeError(
            f"{folder}: this is a folder without a DICOM file. Give a NIfTI file (.nii, .nii.gz), "
            "an MGZ file (.mgz, .mgh) or the folder of one DICOM series."
        )
    slices = [_header(path) for path in files]
    _check_one_series(folder, slices)
    order, affine = _geometry(folder, files, slices)
    rows, columns = int(slices[0].Rows), int(slices[0].Columns)
    needed = rows * columns * len(files) * 4
    if needed > available_bytes():
        raise TooLittleMemoryError(
            f"{folder}: {len(files)} slices need {needed / 1e9:.1f} GB of memory, "
            f"{available_bytes() / 1e9:.1f} GB are free. Free some memory."
        )
    array = np.empty((columns, rows, len(files)), np.float32)
    for place, index in enumerate(order):
        array[:, :, place] = _pixels(files[index], (rows, columns)).T
    return check_volume(Volume(array, affine), str(folder))


def _header(path: Path) -> Any:
    """A file's data set without its pixels.

    Raises:
        VolumeError: damaged, or not a grey single-frame slice with a place in the patient.
    """
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # pydicom raises what its parser stumbles over
        raise VolumeError(
            f"{path}: the DICOM header can't be read ({error}). Export it again."
        ) from error
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise VolumeError(
            f"{path}: several frames in one file (enhanced DICOM). Export the series as single slices."
        )
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if missing:
        raise VolumeError(
            f"{path}: not a slice of a volume, it has no {', '.join(missing)}. Take scouts and reports "
            "out of the folder."
        )
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise VolumeError(f"{path}: a colour image. Export the grey-scale series.")
    kind = str(header.get("Modality", ""))
    if kind == "CT" and header.get("RescaleIntercept") in (None, ""):
        raise VolumeError(f"{path}: a CT without RescaleIntercept has no HU scale. Export it again.")
    if kind == "CT" and str(header.get("RescaleType") or "HU") != "HU":
        raise VolumeError(f"{path}: values are {header.RescaleType}, not HU. Export the CT in HU.")
    return header


def _check_one_series(folder: Path, slices: Sequence[Any]) -> None:
    series = Counter(str(header.get("SeriesInstanceUID", "")) for header in slices)
    if len(series) > 1:
        counts = ", ".join(str(number) for _, number in series.most_common())
        raise VolumeError(
            f"{folder}: {len(series)} series in one folder (of {counts} slices). Give every series a "
            "folder of its own."
        )
    if len(slices) < 2:
        raise VolumeError(f"{folder}: a single slice is no volume. Export the whole series.")
    for name in ("Modality", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        values = {_rounded(header.get(name)) for header in slices}
        if len(values) > 1:
            raise VolumeError(
                f"{folder}: the slices differ in {name}: {_shown(values)}. Mixed or reformatted series "
                "can't be stacked; export one."
            )


def _rounded(value: Any) -> Any:
    if isinstance(value, str | int | None):
        return value
    return tuple(round(float(number), 3) for number in value)


def _shown(values: set[Any]) -> str:
    return " and ".join(sorted(str(value) for value in values)[:3])


def _geometry(
    folder: Path, files: Sequence[Path], slices: Sequence[Any]
) -> tuple[list[int], NDArray[np.float64]]:
    """The slices' order, and the affine to RAS mm.

    DICOM PS3.3 C.7.6.2.1.1: the first three numbers of ImageOrientationPatient point along a row (the
    column index grows), the last three down a column; PixelSpacing is between rows, then columns.
    """
    cosines = np.array([float(n) for n in slices[0].ImageOrientationPatient]).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
        raise VolumeError(
            f"{files[0]}: ImageOrientationPatient isn't two right-angled directions. Export it again."
        )
    normal = np.cross(cosines[0], cosines[1])
    at = np.array([[float(n) for n in header.ImagePositionPatient] for header in slices])
    order = np.argsort(at @ normal, kind="stable")
    at = at[order]
    gaps = np.diff(at @ normal)
    usual = float(np.median(gaps))
    for gap, before, after in zip(gaps, order[:-1], order[1:], strict=True):
        if abs(gap - usual) <= _UNEVEN * usual and usual > 0:
            continue
        between = f"{folder}: {files[before].name} and {files[after].name} are"
        if gap <= _UNEVEN * max(usual, 1.0):
            raise VolumeError(
                f"{between} at one place. Several phases, echoes or copies are in the folder; leave one."
            )
        missing = round(gap / usual) - 1
        lost = missing > 0 and abs(gap - (missing + 1) * usual) <= _UNEVEN * gap
        raise VolumeError(
            f"{between} {gap:g} mm apart, others {usual:g} mm: "
            + (f"{missing} slices are missing" if lost else "the distances are uneven")
            + ". Export the whole series again, with even distances."
        )
    step = (at[-1] - at[0]) / (len(at) - 1)
    if np.linalg.norm(step - (step @ normal) * normal) > _UNEVEN * usual:
        raise VolumeError(
            f"{folder}: the slices are shifted against each other (a tilted gantry), so the voxels "
            "aren't boxes. Resample the series to upright slices first."
        )
    between_rows, between_columns = (float(n) for n in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = cosines[0] * between_columns
    affine[:3, 1] = cosines[1] * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = at[0]
    affine[:3] = affine[:3] * _LPS_TO_RAS[:, None] + 0.0  # no -0
    return [int(index) for index in order], affine


def _pixels(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(rows, columns) float32, with slope and intercept applied."""
    import pydicom

    try:
        data = pydicom.dcmread(path)
        stored = data.pixel_array
    except Exception as error:  # missing pixels, a codec that isn't installed, damaged compression
        raise VolumeError(
            f"{path}: the pixels can't be decoded ({str(error).splitlines()[0] or error!r}). Export the "
            "series uncompressed (explicit VR little endian)."
        ) from error
    if stored.shape != shape:
        raise VolumeError(f"{path}: {stored.shape} pixels, {shape} in the header. Export it again.")
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    scaled: NDArray[np.float32] = stored.astype(np.float32)
    scaled *= np.float32(1.0 if slope in (None, "") else slope)
    scaled += np.float32(0.0 if intercept in (None, "") else intercept)
    return scaled
