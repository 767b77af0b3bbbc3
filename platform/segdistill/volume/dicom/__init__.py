"""Reading one DICOM series, slices or one enhanced file below a folder, as a volume."""

from pathlib import Path

from segdistill.volume.grid import Volume, VolumeError


def read_dicom_series(folder: Path) -> Volume:
    """Read the one series that lies below a folder, its subfolders included.

    Every file below the folder is either a slice of the volume, or can't be one (text, pictures, a
    DICOMDIR), or is the reason of the error. Slices are ordered by where they are
    (ImagePositionPatient along the normal of ImageOrientationPatient), never by name or number. Nothing
    of the header but the geometry and the scale of the intensities is kept, so no patient field goes
    anywhere.

    Returns:
        The scan: axes along the image's rows, its columns and from slice to slice; float32 with slope
        and intercept (or the modality's look-up table) applied, so HU for CT; affine to RAS mm.

    Raises:
        VolumeError: no slice or a single one, several series, a damaged file or what isn't an image,
            slices that differ in size, orientation or voxel size, two slices at one place, a missing
            slice, a slice that isn't where the line through all of them puts it, acquisitions that
            take turns, a tilted gantry, frames without a place, colour, inverted grey, pixels that
            can't be decoded, a CT without its HU scale, what
            :func:`~segdistill.volume.check_volume` refuses, or an environment without the decoders.
    """
    try:  # here, and not above: files of other formats need no DICOM libraries
        from segdistill.volume.dicom.series import read_series
    except ModuleNotFoundError as error:
        raise VolumeError(
            f"{folder}: a DICOM series can't be read here, the package {error.name} isn't installed. "
            "Install it, or convert the series to NIfTI."
        ) from error
    return read_series(folder)
