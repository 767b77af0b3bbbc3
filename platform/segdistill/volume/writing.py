"""Writing label maps on a scan's grid, and new volumes, as NIfTI files."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from segdistill.files import atomic_path
from segdistill.volume.grid import Volume, VolumeError, affine_difference, check_affine

# The fields that say where the voxels are. All others stay at their defaults: free text
# (descrip, aux_file, intent_name, db_name) and extensions may name a patient.
_GRID_FIELDS = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def write_label_map(path: Path, labels: NDArray[np.uint8], like: Volume) -> None:
    """Write a label map on the grid of the scan ``like``.

    Shape, voxel sizes, units, qform, sform and both codes are the scan's own, to the bit; no other
    header field is taken over. For a scan from an MGZ file, its affine becomes sform and qform.

    Args:
        path: ``.nii`` or ``.nii.gz``; whole or absent.
        labels: (X, Y, Z) uint8 label codes, axes as in ``like.array``.
        like: the scan that was read with :func:`~segdistill.volume.read_volume`.

    Raises:
        VolumeError: another file ending, another dtype, or another shape than the scan's.
    """
    if labels.dtype != np.uint8 or labels.shape != like.array.shape:
        raise VolumeError(
            f"{path}: labels are {labels.dtype} {labels.shape}, uint8 {like.array.shape} is needed "
            "for the scan's grid. Segment this very scan again."
        )
    if isinstance(like.header, nib.Nifti1Header):  # also the base class of NIfTI-2's header
        header = type(like.header)(endianness=like.header.endianness)
        for name in _GRID_FIELDS:
            header[name] = like.header[name]
    else:
        header = _new_header(labels.shape, like.affine)
    header.set_data_dtype(np.uint8)
    _write(path, header, labels)


def write_volume(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a new NIfTI-1 file; the same values give the same bytes.

    Args:
        path: ``.nii`` or ``.nii.gz``; whole or absent.
        array: (X, Y, Z); real numbers of a type that NIfTI has, stored as they are (no scaling).
        affine: (4, 4) from voxel indices to RAS mm; becomes sform and qform with code 1 (scanner).

    Raises:
        VolumeError: another file ending, not three axes, a dtype that NIfTI doesn't have, or an
            affine that :func:`~segdistill.volume.check_volume` refuses.
    """
    if array.ndim != 3 or array.dtype.kind not in "fiu" or array.dtype == np.float16:
        raise VolumeError(f"{path}: can't store {array.dtype} {array.shape} as NIfTI. Convert it first.")
    affine = np.asarray(affine, dtype=np.float64)
    check_affine(affine, str(path))
    header = _new_header(array.shape, affine)
    header.set_data_dtype(array.dtype)
    _write(path, header, array)


def _new_header(shape: tuple[int, ...], affine: NDArray[np.float64]) -> Any:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    # A qform holds right angles only; where the affine has others, it would contradict the sform.
    header.set_qform(affine, code=1)
    header["qform_code"] = not affine_difference(affine, header.get_qform(), shape)
    return header


def _write(path: Path, header: Any, array: NDArray[Any]) -> None:
    """Header, no extensions, then the voxels with the first axis fastest."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise VolumeError(f"{path}: a label map or volume is written as .nii or .nii.gz. Rename it.")
    header["vox_offset"] = len(header.binaryblock) + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    stored = np.asfortranarray(array, header.get_data_dtype())
    parts = (header.binaryblock + b"\0\0\0\0", stored.reshape(-1, order="F").view(np.uint8).data)
    with atomic_path(path) as partial, partial.open("wb") as stream:
        if not path.name.endswith(".gz"):
            stream.writelines(parts)
            return
        # Without a time or a name in it, so the same bytes each time. Level 1 of ISA-L makes a label map
        # as small as zlib's level 2 does, in a fifth of the time (benchmarks).
        packer = isal_zlib.compressobj(level=1, wbits=31)
        for part in parts:
            stream.write(packer.compress(part))
        stream.write(packer.flush())
