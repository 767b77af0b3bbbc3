"""What a volume is, and what makes one fit to be segmented."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from segdistill.files import SegdistillError

SMALLEST_SPACING_MM = 0.05
LARGEST_SPACING_MM = 20.0


class VolumeError(SegdistillError):
    """A scan or label map that can't be used; the message names the file and what to do."""


def reason(error: Exception) -> str:
    """What went wrong in a parser or decoder, in one line that is never empty."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a label map.

    Attributes:
        array: (X, Y, Z), real numbers (float32 for scans, integers for label maps), in the order
            in which the file stores its axes.
        affine: (4, 4) float64, from voxel indices (centres) to RAS coordinates in mm.
        header: the file's header, for writing a label map on the same grid; None for volumes that
            come from no file.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any = field(default=None, repr=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each array axis, in mm."""
        x, y, z = (float(size) for size in voxel_sizes(self.affine))
        return x, y, z

    @property
    def orientation(self) -> str:
        """Nearest anatomical direction of each array axis, e.g. ``RAS`` or ``LPS``."""
        return "".join(aff2axcodes(self.affine))

    def emptied(self) -> "Volume":
        """The same grid and header without the voxels: zeros that take no memory."""
        return replace(self, array=np.broadcast_to(np.zeros((), self.array.dtype), self.array.shape))


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 1e-3) -> bool:
    """Whether two volumes have the same shape and put every voxel at the same place.

    Args:
        a: one volume.
        b: the other.
        tolerance_mm: largest distance between the same voxel of the two, in mm.
    """
    if a.array.shape != b.array.shape:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in a.array.shape], [1])).reshape(4, -1)
    apart = (a.affine - b.affine)[:3] @ corners
    return bool(np.linalg.norm(apart, axis=0).max() <= tolerance_mm)


def reoriented(volume: Volume, orientation: str) -> Volume:
    """The same voxels at the same places with the axes in another order or direction.

    Args:
        volume: a scan or label map.
        orientation: axis codes of the new first to third axis, e.g. ``RAS``.
    """
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(tuple(orientation)))
    back = inv_ornt_aff(turn, volume.array.shape)
    return Volume(np.asarray(apply_orientation(volume.array, turn)), volume.affine @ back)


def check_volume(volume: Volume, name: str) -> Volume:
    """Return ``volume`` if it's fit to be segmented.

    Args:
        volume: a scan.
        name: how errors call it, e.g. its file name.

    Raises:
        VolumeError: not three axes of at least two voxels, NaN or infinite voxels, one intensity
            everywhere, an affine that can't be inverted, or a voxel size out of 0.05 to 20 mm.
    """
    check_shape(volume.array.shape, name)
    check_affine(volume.affine, name)
    low, high = volume.array.min(), volume.array.max()  # a single NaN makes them NaN
    if not np.isfinite([low, high]).all():
        raise VolumeError(
            f"{name}: some voxels are NaN or infinite. Replace them, or export the scan again."
        )
    if low == high:
        raise VolumeError(
            f"{name}: the volume is empty, every voxel is {volume.array.flat[0]:g}. "
            "Check that the right series was exported."
        )
    return volume


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raise VolumeError unless ``shape`` has three axes of at least two voxels each."""
    if 0 in shape or not shape:
        raise VolumeError(f"{name}: the volume is empty, its shape is {shape}. Export the scan again.")
    if len(shape) > 3:
        raise VolumeError(
            f"{name}: {len(shape)} axes, shape {shape}; one 3D volume is needed. "
            "Split the series and send one volume."
        )
    if len(shape) < 3 or min(shape) < 2:
        raise VolumeError(
            f"{name}: shape {shape} is a single slice; a 3D volume with at least two voxels "
            "along each axis is needed. Export the whole series."
        )


def check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Raise VolumeError unless ``affine`` can be inverted and its voxel sizes make sense."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise VolumeError(
            f"{name}: the affine has values that are not numbers. Repair the header or export again."
        )
    sizes = voxel_sizes(affine)
    if not all(SMALLEST_SPACING_MM <= size <= LARGEST_SPACING_MM for size in sizes):
        raise VolumeError(
            f"{name}: voxel size {_in_mm(sizes)} mm is out of {SMALLEST_SPACING_MM} to "
            f"{LARGEST_SPACING_MM} mm. Check the units and repair the header, or export again."
        )
    # Of unit columns: 1 for right angles, 0 when two axes point the same way.
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise VolumeError(
            f"{name}: the affine is singular, two axes point the same way. "
            "Repair the header (sform and qform) or export again."
        )


def _in_mm(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
