"""What a volume is, and what makes one fit to be segmented."""

from collections.abc import Iterable
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

#: How far along an axis two descriptions of a grid may put the same voxel apart, in voxels. A corner
#: taken for a centre moves a grid by twice as much; rounded directions and spacings move it by less.
TOLERANCE_VOXELS = 0.25


class VolumeError(SegdistillError):
    """A scan or label map that can't be used; the message names the file and what to do."""


def reason(error: Exception) -> str:
    """What went wrong in a parser or decoder, in one line that is never empty."""
    return " ".join(str(error).split())[:200] or type(error).__name__


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


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same grid: :func:`grid_difference` finds nothing."""
    return not grid_difference(a, b)


def grid_difference(a: Volume, b: Volume) -> str:
    """How the grids of two volumes differ, for a message; empty if they're the same.

    They're the same with one shape and every voxel at the same place, within
    :data:`TOLERANCE_VOXELS` over the whole extent.
    """
    if a.array.shape != b.array.shape:
        return f"shape {a.array.shape} and {b.array.shape}"
    return affine_difference(a.affine, b.affine, a.array.shape)


def affine_difference(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> str:
    """How far two affines put the same voxels apart, for a message; empty within the tolerance.

    Args:
        a: (4, 4) from voxel indices to mm.
        b: the other, as ``a``.
        shape: of the grid, three axes.
    """
    # The distance grows in a straight line from voxel to voxel, so it's largest at a corner.
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1])).reshape(4, -1)
    apart = (b - a)[:3] @ corners
    in_voxels = np.abs(np.linalg.solve(a[:3, :3], apart)).max(axis=1)
    if in_voxels.max() <= TOLERANCE_VOXELS:
        return ""
    farthest = float(np.linalg.norm(apart, axis=0).max())
    words = [
        f"the same voxel is up to {farthest:.3g} mm apart ({in_voxels.max():.3g} voxels along axis "
        f"{in_voxels.argmax() + 1}; {TOLERANCE_VOXELS:g} are allowed)"
    ]
    # Absurd voxel sizes have no direction.
    axes = ["".join(code or "?" for code in aff2axcodes(affine)) for affine in (a, b)]
    if axes[0] != axes[1]:
        words.append(f"axes {axes[0]} and {axes[1]}")
    sizes = [voxel_sizes(affine) for affine in (a, b)]
    if not np.allclose(sizes[0], sizes[1], rtol=1e-4):
        words.append(f"voxel size {in_mm(sizes[0])} and {in_mm(sizes[1])} mm")
    return ", ".join(words)


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
    if min(shape, default=0) < 1:
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
            f"{name}: voxel size {in_mm(sizes)} mm is out of {SMALLEST_SPACING_MM} to "
            f"{LARGEST_SPACING_MM} mm. Check the units and repair the header, or export again."
        )
    # Of unit columns: 1 for right angles, 0 when two axes point the same way.
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise VolumeError(
            f"{name}: the affine is singular, two axes point the same way. "
            "Repair the header (sform and qform) or export again."
        )


def in_mm(sizes: Iterable[float]) -> str:
    """Voxel sizes for a message, without the unit: ``1 x 1 x 2.5``."""
    return " x ".join(f"{size:g}" for size in sizes)
