"""Reading scans and label maps: NIfTI and MGZ files, and scans from a DICOM series."""

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.fileholders import FileHolder
from numpy.typing import NDArray

from segdistill.volume.dicom import read_dicom_series
from segdistill.volume.grid import Volume, VolumeError, check_affine, check_shape, check_volume, reason
from segdistill.volume.memory import available_bytes

_EXPORT_AGAIN = "Export or copy it again."
_NEEDED = "A NIfTI file (.nii, .nii.gz) or an MGZ file (.mgz, .mgh) is needed."


def read_volume(path: Path) -> Volume:
    """Read a scan from ``.nii``, ``.nii.gz``, ``.mgz``, ``.mgh`` or a folder with one DICOM series.

    A trailing axis of one (a time series of one) is dropped, and written back by
    :func:`~segdistill.volume.write_label_map`.

    Returns:
        The scan with its intensities as float32, scaled by the file's slope and intercept.

    Raises:
        VolumeError: not such a file, truncated or damaged, of a data type that isn't real numbers,
            larger than the memory, or one that :func:`~segdistill.volume.check_volume` refuses.
    """
    if path.is_dir():
        return read_dicom_series(path)
    image, array = _read(path, np.float32)
    return check_volume(Volume(array, _affine(image), image.header), str(path))


def read_label_map(path: Path) -> Volume:
    """Read a label map; its codes may be stored as floating point if they're whole numbers.

    Returns:
        The label map with codes in the smallest of uint8, int16 and int32 that holds them. An
        empty map (background alone) is fine.

    Raises:
        VolumeError: as :func:`read_volume`, or codes that aren't whole numbers.
    """
    image, array = _read(path, None)
    check_shape(array.shape, str(path))
    affine = _affine(image)
    check_affine(affine, str(path))
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and not (
        np.isfinite([low, high]).all() and np.all(array == np.rint(array))
    ):
        raise VolumeError(
            f"{path}: a label map holds whole numbers, this file doesn't. "
            "Give the label map, not the scan or a probability map."
        )
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return Volume(array.astype(dtype, copy=False), affine, image.header)
    raise VolumeError(f"{path}: label codes {low} to {high} don't fit 32 bits. Renumber them.")


def _read(path: Path, dtype: type[np.float32] | None) -> tuple[Any, NDArray[Any]]:
    """The image and its (X, Y, Z) array, in ``dtype`` or as stored."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: io.BufferedIOBase = igzip.IGzipFile(fileobj=raw) if packed else raw  # type: ignore[no-untyped-call]
            return _read_stream(stream, path, dtype)
    except FileNotFoundError as error:
        raise VolumeError(f"{path}: no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise VolumeError(f"{path}: this is a folder. {_NEEDED}") from error
    except EOFError as error:
        raise VolumeError(f"{path}: the file is truncated. {_EXPORT_AGAIN}") from error
    except (gzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]
        raise VolumeError(f"{path}: the compressed data is damaged, {error}. {_EXPORT_AGAIN}") from error


def _read_stream(
    stream: io.BufferedIOBase, path: Path, dtype: type[np.float32] | None
) -> tuple[Any, NDArray[Any]]:
    start = stream.read(540)
    stream.seek(0)
    kind = _image_class(start)
    if kind is None:
        raise VolumeError(f"{path}: not a NIfTI or MGZ file. {_NEEDED}")
    try:
        if kind is not nib.MGHImage:
            _check_nifti_header(start, kind, path)
        # No memory map: the file may change or go away while the volume is in use.
        image = kind.from_file_map({"image": FileHolder(fileobj=stream)}, mmap=False)
    except VolumeError:
        raise
    except Exception as error:  # whatever the parser stumbles over
        raise VolumeError(
            f"{path}: the header can't be read ({reason(error)}). {_EXPORT_AGAIN}"
        ) from error
    stored = image.get_data_dtype()
    if stored.fields is not None or stored.kind not in "fiu":
        raise VolumeError(
            f"{path}: voxels are {stored}, not real numbers (colour or complex). "
            "Export it as a grey-scale (for complex data: magnitude) volume."
        )
    shape = _without_trailing_ones(image.shape)
    check_shape(shape, str(path))
    needed = int(np.prod([float(n) for n in shape])) * (stored.itemsize + 4)
    if needed > available_bytes():
        raise VolumeError(
            f"{path}: shape {shape} needs {needed / 1e9:.1f} GB of memory, "
            f"{available_bytes() / 1e9:.1f} GB are free. Free some memory, or check the header."
        )
    try:
        array = (
            np.asanyarray(image.dataobj)
            if dtype is None
            else image.get_fdata(dtype=dtype, caching="unchanged")
        )
    except (OSError, ValueError) as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        raise VolumeError(f"{path}: the file is truncated ({reason(error)}). {_EXPORT_AGAIN}") from error
    stream.read(1)  # at the end of a compressed file: compares the checksum
    return image, array.reshape(shape, order="F")


def _image_class(start: bytes) -> Any:
    """The nibabel class for a file that begins with ``start``, or None."""
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    if 348 in size and start[344:348] == b"n+1\0":
        return nib.Nifti1Image
    if 540 in size and start[4:8] == b"n+2\0":
        return nib.Nifti2Image
    if start[:4] == b"\0\0\0\1" and len(start) >= 284:
        return nib.MGHImage
    return None


def _check_nifti_header(start: bytes, kind: Any, path: Path) -> None:
    """Raise VolumeError for voxel sizes of zero, which nibabel would quietly mend to 1 mm."""
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        raise VolumeError(
            f"{path}: voxel size {' x '.join(f'{size:g}' for size in sizes)} mm in the header. "
            "Repair the header, or export again."
        )


def _affine(image: Any) -> NDArray[np.float64]:
    return np.array(image.affine, dtype=np.float64)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
