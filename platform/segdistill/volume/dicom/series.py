"""From a folder to the volume of the one DICOM series that lies below it."""

import logging
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdistill.volume.dicom.files import dicom_files
from segdistill.volume.dicom.pixels import read_pixels
from segdistill.volume.dicom.slices import Slice, read_slices
from segdistill.volume.dicom.stack import stack
from segdistill.volume.grid import Volume, VolumeError, check_volume
from segdistill.volume.memory import TooLittleMemoryError, available_bytes

log = logging.getLogger(__name__)


def read_series(folder: Path) -> Volume:
    """What :func:`segdistill.volume.read_dicom_series` says, where the DICOM libraries are."""
    with warnings.catch_warnings():
        # pydicom's quote values of the header, and a header names a patient.
        warnings.simplefilter("ignore")
        return _read_series(folder)


def ordered_slices(folder: Path) -> tuple[list[Slice], NDArray[np.float64]]:
    """The slices of the one series below a folder in the volume's order, and its affine to RAS mm.

    Reads headers alone.

    Raises:
        VolumeError: what :func:`segdistill.volume.read_dicom_series` says of headers.
    """
    slices = read_slices(dicom_files(folder))
    if not slices:
        raise VolumeError(
            f"{folder}: this is a folder without a DICOM file. Give a NIfTI file (.nii, .nii.gz), "
            "an MGZ file (.mgz, .mgh) or the folder of one DICOM series."
        )
    return stack(folder, slices)


def _read_series(folder: Path) -> Volume:
    slices, affine = ordered_slices(folder)
    rows, columns = slices[0].shape
    # Frames of one file are unpacked all at once, to 2 bytes a voxel.
    needed = rows * columns * len(slices) * (4 if slices[0].frame is None else 6)
    if needed > available_bytes():
        raise TooLittleMemoryError(
            f"{folder}: {len(slices)} slices need {needed / 1e9:.1f} GB of memory, "
            f"{available_bytes() / 1e9:.1f} GB are free. Free some memory."
        )
    array = np.empty((columns, rows, len(slices)), np.float32)
    files = [[one] for one in slices] if slices[0].frame is None else [slices]
    for place, pixels in enumerate(chain.from_iterable(map(read_pixels, files))):
        array[:, :, place] = pixels.T
    if any(one.lossy for one in slices):
        # Without the folder's name, which often is a patient's.
        log.warning("the DICOM series was compressed with loss: its intensities aren't the scanner's")
    return check_volume(Volume(array, affine), str(folder))
