"""From a folder to the volume of the one DICOM series that lies below it."""

import logging
import warnings
from pathlib import Path

import numpy as np

from segdistill.volume.dicom.files import dicom_files
from segdistill.volume.dicom.pixels import read_pixels
from segdistill.volume.dicom.slices import read_slices
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


def _read_series(folder: Path) -> Volume:
    slices = read_slices(dicom_files(folder))
    if not slices:
        raise VolumeError(
            f"{folder}: this is a folder without a DICOM file. Give a NIfTI file (.nii, .nii.gz), "
            "an MGZ file (.mgz, .mgh) or the folder of one DICOM series."
        )
    slices, affine = stack(folder, slices)
    rows, columns = slices[0].shape
    needed = rows * columns * len(slices) * 4
    if needed > available_bytes():
        raise TooLittleMemoryError(
            f"{folder}: {len(slices)} slices need {needed / 1e9:.1f} GB of memory, "
            f"{available_bytes() / 1e9:.1f} GB are free. Free some memory."
        )
    array = np.empty((columns, rows, len(slices)), np.float32)
    for place, one in enumerate(slices):
        array[:, :, place] = read_pixels(one).T
    if any(one.lossy for one in slices):
        # Without the folder's name, which often is a patient's.
        log.warning("the DICOM series was compressed with loss: its intensities aren't the scanner's")
    return check_volume(Volume(array, affine), str(folder))
