"""Reading scans and label maps: NIfTI and MGZ files, and scans from a DICOM series."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from segdistill.volume.dicom import read_dicom_series
from segdistill.volume.grid import Volume, VolumeError, check_volume
from segdistill.volume.header import EXPORT_AGAIN, HEADER_BYTES, NEEDED, Header, parse_header, parsing
from segdistill.volume.memory import TooLittleMemoryError, available_bytes

_MOST_PACKED = 1032  # bytes that one compressed byte holds at most (zlib's technical details)
# The most that a code may be off a whole number; interpolation and probability maps leave more.
_WHOLE = 0.05


def read_volume(path: Path) -> Volume:
    """Read a scan from ``.nii``, ``.nii.gz``, ``.mgz``, ``.mgh`` or a folder with one DICOM series.

    A trailing axis of one (a time series of one) is dropped, and written back by
    :func:`~segdistill.volume.write_label_map`.

    Returns:
        The scan with its intensities as float32, scaled by the file's slope and intercept.

    Raises:
        VolumeError: not such a file, truncated or damaged, of a data type that isn't real numbers, with
            a header that contradicts itself or leaves the orientation or the unit open, or one that
            :func:`~segdistill.volume.check_volume` refuses.
        TooLittleMemoryError: larger than the memory that is free.
    """
    if path.is_dir():
        return read_dicom_series(path)
    header, array = _read(path, np.float32)
    return check_volume(Volume(array, header.affine, header.fields), str(path))


def read_label_map(path: Path) -> Volume:
    """Read a label map; its codes may be stored scaled or as floating point if they're whole numbers.

    Whole means but for rounding: half a step of scaled integers, the last digits of float32.

    Returns:
        The label map with codes in the smallest of uint8, int16 and int32 that holds them. An
        empty map (background alone) is fine.

    Raises:
        VolumeError: as :func:`read_volume`, or codes that aren't whole numbers.
    """
    header, array = _read(path, None)
    if array.dtype.kind == "f":
        array = _whole(array, header, path)
    low, high = array.min(), array.max()
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return Volume(array.astype(dtype, copy=False), header.affine, header.fields)
    raise VolumeError(f"{path}: label codes {low} to {high} don't fit 32 bits. Renumber them.")


def stored_shape(path: Path) -> tuple[int, ...]:
    """The shape (X, Y, Z) that a NIfTI or MGZ file's header says, without reading its voxels.

    Raises:
        VolumeError: as :func:`read_volume`, for what is wrong with the file or its header.
    """
    with _opened(path) as (_, header):
        return header.shape


def _whole(array: NDArray[Any], header: Header, path: Path) -> NDArray[Any]:
    """The codes without what rounding added."""
    step = abs(header.slope) if header.slope != 1 and header.dtype.kind in "iu" else 0.0
    codes: NDArray[Any] = np.rint(array)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        off = np.abs(array - codes)
    if not off.max() <= min(step / 2 + 1e-6 * np.abs(codes).max(), _WHOLE):  # NaN neither
        raise VolumeError(
            f"{path}: a label map holds whole numbers, this file has {array.flat[off.argmax()]:.6g}. "
            "Give the label map, not the scan or a probability map; if it is the label map, write its "
            "codes as integers without scaling."
        )
    return codes


def _read(path: Path, dtype: type[np.float32] | None) -> tuple[Header, NDArray[Any]]:
    """The header and the (X, Y, Z) array, in ``dtype`` or as stored and scaled."""
    with _opened(path) as (stream, header):
        voxels = float(np.prod([float(n) for n in header.shape]))
        size = path.stat().st_size
        most = size * (_MOST_PACKED if isinstance(stream, igzip.IGzipFile) else 1)
        if voxels * header.dtype.itemsize > most:
            raise VolumeError(
                f"{path}: the file is truncated, {size} bytes can't hold the {header.shape} voxels that "
                f"its header states. {EXPORT_AGAIN}"
            )
        needed = voxels * (header.dtype.itemsize + 4)
        if needed > available_bytes():
            raise TooLittleMemoryError(
                f"{path}: shape {header.shape} needs {needed / 1e9:.1f} GB of memory, "
                f"{available_bytes() / 1e9:.1f} GB are free. Free some memory, or give a smaller scan."
            )
        with parsing(str(path), "the voxels can't be read, the file is truncated or damaged"):
            # No memory map: the file may change or go away while the volume is in use.
            array = np.asanyarray(ArrayProxy(stream, header.fields, mmap=False), dtype)
            stream.read(1)  # at the end of a compressed file: compares the checksum
        return header, array.reshape(header.shape, order="F")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, Header]]:
    """The unpacked bytes of a file, from its start, and what its header says."""
    try:
        raw = path.open("rb")
    except FileNotFoundError as error:
        raise VolumeError(f"{path}: no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise VolumeError(f"{path}: this is a folder. {NEEDED}") from error
    except OSError as error:
        raise VolumeError(
            f"{path}: can't be opened ({error.strerror}). Check its permissions."
        ) from error
    with raw:
        with parsing(str(path), "the file can't be read"):
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: io.BufferedIOBase = igzip.IGzipFile(fileobj=raw) if packed else raw  # type: ignore[no-untyped-call]
            start = stream.read(HEADER_BYTES)
            stream.seek(0)
        yield stream, parse_header(start, str(path))
