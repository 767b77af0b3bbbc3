"""What a NIfTI or MGZ header says about its voxels; one that leaves open where they are is refused.

NIfTI says up to three times where the voxels are: in the sform (a matrix), the qform (a rotation, an
offset and the voxel sizes) and the voxel sizes alone (pixdim). Programs differ in which they follow:
nibabel prefers the sform, ITK mostly the qform, FSL takes the voxel sizes from pixdim. All must agree.
Sources: nifti1.h of the NIfTI-1.1 standard; FreeSurfer's description of the MGH format.
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from isal import isal_zlib
from nibabel.affines import voxel_sizes
from nibabel.freesurfer import mghformat
from nibabel.quaternions import mat2quat, quat2mat
from numpy.typing import NDArray

from segdistill.volume.grid import (
    VolumeError,
    affine_difference,
    check_affine,
    check_shape,
    in_mm,
    reason,
)

#: Bytes from the start of a file that hold any header.
HEADER_BYTES = 540
EXPORT_AGAIN = "Export or copy it again."
NEEDED = "A NIfTI file (.nii, .nii.gz) or an MGZ file (.mgz, .mgh) is needed."

# qform_code and sform_code: unknown, scanner, aligned, Talairach, MNI, another template.
_CODES = range(6)
# xyzt_units: no unit, which everybody reads as mm, and mm.
_MM = (0, 2)
_OTHER_UNITS = {1: "metres", 3: "micrometres"}
# How far the square of the quaternion's first number may be off. The header leaves that number out: it's
# the root of what the other three, rounded to float32, leave of 1, and near a half turn off by 1e-3.
_SQUARE_OFF = 1e-6


@dataclass(frozen=True, eq=False)
class Header:
    """What is known of a file before its voxels are read.

    Attributes:
        fields: nibabel's header with the values of the file, none of them mended.
        shape: (X, Y, Z), trailing axes of one left out.
        dtype: of the voxels as stored, before slope and intercept.
        slope: by which stored voxels are multiplied, 1 if the file doesn't say.
        affine: (4, 4) float64, from voxel indices to RAS mm.
    """

    fields: Any = field(repr=False)
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slope: float
    affine: NDArray[np.float64]


@contextmanager
def parsing(name: str, problem: str) -> Iterator[None]:
    """Whatever a library raises on the bytes of a file becomes a refusal with its reason.

    Only calls into libraries belong inside: our own faults must not look like the file's.

    Args:
        name: how errors call the file.
        problem: what can't be done, e.g. ``the header can't be read``.

    Raises:
        VolumeError: the library raised an exception.
    """
    try:
        yield
    except MemoryError:
        raise
    except EOFError as error:
        raise VolumeError(f"{name}: the file is truncated. {EXPORT_AGAIN}") from error
    except (gzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]
        raise VolumeError(f"{name}: the compressed data is damaged, {error}. {EXPORT_AGAIN}") from error
    except Exception as error:
        raise VolumeError(f"{name}: {problem} ({reason(error)}). {EXPORT_AGAIN}") from error


@np.errstate(over="ignore", invalid="ignore")  # what overflows isn't finite, and refused
def parse_header(start: bytes, name: str) -> Header:
    """What a file that begins with ``start`` says about its voxels.

    Args:
        start: the first :data:`HEADER_BYTES` of the file, unpacked; fewer if the file is shorter.
        name: how errors call the file.

    Raises:
        VolumeError: not a NIfTI or MGZ file, or a header that can't be read, describes no 3D volume of
            real numbers, contradicts itself, or leaves the orientation or the unit open.
    """
    fields = _fields(start, name)
    is_nifti = isinstance(fields, nib.Nifti1Header)  # also the base class of NIfTI-2's header
    if is_nifti:
        _check_layout(fields, name)
    dtype = _stored_type(fields, name)
    with parsing(name, "the header can't be read"):
        shape = tuple(int(n) for n in fields.get_data_shape())
        slope, _ = fields.get_slope_inter()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    check_shape(shape, name)
    if is_nifti:
        _check_unit(fields, name)
        affine = _nifti_affine(fields, shape, name)
    else:
        affine = _mgh_affine(fields, start, shape, name)
    return Header(fields, shape, dtype, 1.0 if slope is None else float(slope), affine)


def _fields(start: bytes, name: str) -> Any:
    """The header as stored: nibabel's checks would put 1 mm for a voxel size of 0, 0 for an odd code."""
    with parsing(name, "the header can't be read"):
        for order in ("little", "big"):
            size = int.from_bytes(start[:4], order)
            if size == 348 and start[344:348] == b"n+1\0":
                return nib.Nifti1Header(start[:348], order, check=False)
            if size == 540 and start[4:8] == b"n+2\0":
                return nib.Nifti2Header(start[:540], order, check=False)
        if start[:4] == b"\0\0\0\1" and len(start) >= mghformat.DATA_OFFSET:
            return mghformat.MGHHeader(start[: mghformat.header_dtype.itemsize], check=False)
    if start[128:132] == b"DICM":
        raise VolumeError(
            f"{name}: this is a DICOM file, one slice of a series. Convert the series to NIfTI, for "
            "example with dcm2niix."
        )
    raise VolumeError(f"{name}: not a NIfTI or MGZ file. {NEEDED}")


def _check_layout(fields: Any, name: str) -> None:
    """Raise VolumeError unless a NIfTI header has a possible number of axes and start of the voxels."""
    axes, offset = int(fields["dim"][0]), float(fields["vox_offset"])
    if not 1 <= axes <= 7:
        raise VolumeError(
            f"{name}: the header can't be read (dim says {axes} axes, NIfTI has 1 to 7). {EXPORT_AGAIN}"
        )
    first = fields.template_dtype.itemsize + 4
    if not offset >= first:
        raise VolumeError(
            f"{name}: by the header the voxels begin at byte {offset:g} (vox_offset), inside the header "
            f"itself; {first} is the least. {EXPORT_AGAIN}"
        )


def _stored_type(fields: Any, name: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = fields.get_data_dtype()
    except KeyError as error:
        raise VolumeError(
            f"{name}: the header says data type {error}, which this format doesn't have. {EXPORT_AGAIN}"
        ) from error
    if dtype.fields is not None or dtype.kind not in "fiu":
        raise VolumeError(
            f"{name}: voxels are {dtype}, not real numbers (colour or complex). "
            "Export it as a grey-scale (for complex data: magnitude) volume."
        )
    return dtype


def _check_unit(fields: Any, name: str) -> None:
    unit = int(fields["xyzt_units"]) & 7
    if unit not in _MM:
        named = _OTHER_UNITS.get(unit, f"an unknown unit ({unit})")
        raise VolumeError(
            f"{name}: the header gives lengths in {named}, voxel size {in_mm(fields['pixdim'][1:4])}. "
            "Some programs convert such a file to mm, others take the numbers as mm. Convert it to mm, "
            "or, if the numbers are mm, set the unit (xyzt_units) to mm."
        )


def _check_sizes(sizes: NDArray[np.float64], name: str) -> None:
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise VolumeError(
            f"{name}: voxel size {in_mm(sizes)} mm in the header. Repair the header, or export again."
        )


def _nifti_affine(fields: Any, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """The sform if the header has one, else the qform, once both and the voxel sizes agree."""
    sizes = np.asarray(fields["pixdim"][1:4], np.float64)
    _check_sizes(sizes, name)
    codes = {form: int(fields[f"{form}_code"]) for form in ("qform", "sform")}
    for form, code in codes.items():
        if code not in _CODES:
            raise VolumeError(
                f"{name}: {form}_code is {code}, NIfTI has {_CODES[0]} to {_CODES[-1]}. "
                "Repair the header, or export again."
            )
    if not any(codes.values()):
        raise _no_orientation(name, "qform and sform codes are 0")
    if not codes["sform"]:
        return _qform(fields, sizes, None, name)
    sform: NDArray[np.float64] = np.asarray(fields.get_sform(), np.float64)
    check_affine(sform, name)
    _agree(sform, _resized(sform, sizes), shape, "the sform and the voxel sizes (pixdim)", name)
    if codes["qform"]:
        _agree(sform, _qform(fields, sizes, sform, name), shape, "the sform and the qform", name)
    return sform


def _qform(
    fields: Any, sizes: NDArray[np.float64], sform: NDArray[np.float64] | None, name: str
) -> NDArray[np.float64]:
    """The qform's affine; of the rotations that its rounded numbers may mean, the sform's or nearest."""
    handedness = float(fields["pixdim"][0])  # qfac; 0 counts as 1 (nifti1.h)
    if handedness not in (-1, 0, 1):
        raise VolumeError(
            f"{name}: pixdim[0] is {handedness:g}; with a qform it is 1 or -1 and decides about left "
            "and right. Repair the header, or export again."
        )
    turned = np.array([1.0, 1.0, handedness or 1.0])
    rest = np.array([fields[f"quatern_{part}"] for part in "bcd"], np.float64)
    square = 1 - float(rest @ rest)
    if not square >= -_SQUARE_OFF:
        raise VolumeError(
            f"{name}: the qform is no rotation, quatern_b, _c, _d are "
            f"{', '.join(f'{number:g}' for number in rest)}. Repair the header, or export again."
        )
    # Alone, as nibabel takes it: a half turn exactly, where rounding may have left the rest.
    first = np.sqrt(square) if square > abs(fields.quaternion_threshold) else 0.0
    if sform is not None:
        own = mat2quat(sform[:3, :3] / voxel_sizes(sform) * turned)
        lowest, highest = np.sqrt(np.clip([square - _SQUARE_OFF, square + _SQUARE_OFF], 0, None))
        first = np.clip(own[0] * (np.sign(own[1:] @ rest) or 1), lowest, highest)
    affine = np.eye(4)
    affine[:3, :3] = quat2mat([first, *rest]) * sizes * turned
    affine[:3, 3] = [fields[f"qoffset_{axis}"] for axis in "xyz"]
    check_affine(affine, name)
    return affine


def _mgh_affine(fields: Any, start: bytes, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    # nibabel's header has put FreeSurfer's default where the flag is 0, so the bytes are asked.
    if np.frombuffer(start, mghformat.header_dtype, 1)[0]["goodRASFlag"] <= 0:
        raise _no_orientation(name, "goodRASFlag is 0")
    sizes = np.asarray(fields["delta"], np.float64)
    _check_sizes(sizes, name)
    affine: NDArray[np.float64] = np.asarray(fields.get_affine(), np.float64)
    check_affine(affine, name)
    _agree(affine, _resized(affine, sizes), shape, "the directions and the voxel sizes", name)
    return affine


def _resized(affine: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same directions and the same first voxel, with other voxel sizes."""
    resized = affine.copy()
    resized[:3, :3] *= sizes / voxel_sizes(affine)
    return resized


def _agree(
    one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...], what: str, name: str
) -> None:
    difference = affine_difference(one, other, shape)
    if difference:
        raise VolumeError(
            f"{name}: the header contradicts itself, {what} disagree: {difference}. Programs differ in "
            "which they follow. Convert the scan again from DICOM, or repair the header so that both "
            "say the same."
        )


def _no_orientation(name: str, why: str) -> VolumeError:
    return VolumeError(
        f"{name}: the header has no orientation ({why}), so left and right are unknown. "
        "Convert the scan again from DICOM."
    )
