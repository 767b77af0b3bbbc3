"""Resampling as nnU-Net v2's default preprocessor does it, for plans that were imported from it.

nnU-Net (``resample_data_or_seg``) resizes with scikit-image: cubic splines for scans and linear
interpolation for logits, outermost voxels repeated, the corners of both grids at the same place. Where
voxels are thick, the thick axis takes the nearest slice and only the other two are interpolated. All of
that is linear and separable, so here it is a matrix of weights per axis.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segdistill.runtime.resample import AxisWeights, resample

_ANISOTROPY = 3.0  # largest over smallest voxel size above which an axis counts as thick; nnU-Net's
_SAME = 1e-4  # relative difference below which two voxel sizes are one (headers hold float32)
_NEGLIGIBLE = 1e-9  # cubic weights fall by 0.27 a voxel; this keeps the matrix a band


def grid_size(size: int, spacing_mm: float, target_mm: float) -> int:
    """Voxels of ``target_mm`` that nnU-Net gives to ``size`` voxels of ``spacing_mm``, at least one."""
    return max(1, round(spacing_mm / target_mm * size))


def thick_axis(source_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """The axis that takes the nearest slice between two grids, or None.

    The first of the two grids whose voxels are more than three times as long as wide decides; two
    equally thick axes (a stack of strips) don't count.
    """
    for spacing in (source_mm, target_mm):
        longest = max(spacing)
        if longest / min(spacing) > _ANISOTROPY:
            thick = [axis for axis, size in enumerate(spacing) if size > longest * (1 - _SAME)]
            return thick[0] if len(thick) == 1 else None
    return None


def weights_between(
    sizes: Sequence[int],
    targets: Sequence[int],
    thick: int | None,
    order: Literal[1, 3],
) -> list[AxisWeights | None]:
    """Weights from a grid to another, one per axis; None where the size stays.

    Args:
        sizes: voxels of the source per axis.
        targets: voxels of the target per axis.
        thick: from :func:`thick_axis`.
        order: of the spline: 3 for scans, 1 for logits and labels.
    """
    return [
        None if size == target else _weights(size, target, 0 if axis == thick else order)
        for axis, (size, target) in enumerate(zip(sizes, targets, strict=True))
    ]


def resample_scan(
    array: NDArray[np.float32], axes: Sequence[AxisWeights | None], thick: int | None
) -> NDArray[np.float32]:
    """Resample (X, Y, Z) intensities; cubic splines overshoot, so the result is clipped.

    Bounds are the smallest and largest value before: of the array, or of each slice where there is a
    thick axis, which nnU-Net resizes slice by slice.
    """
    within: list[AxisWeights | None] = [
        None if axis == thick else part for axis, part in enumerate(axes)
    ]
    if any(part is not None for part in within):
        over = tuple(axis for axis in range(3) if axis != thick)
        low, high = array.min(axis=over, keepdims=True), array.max(axis=over, keepdims=True)
        array = resample(array, within)
        np.clip(array, low, high, out=array)
    if thick is not None and axes[thick] is not None:
        array = resample(array, [part if axis == thick else None for axis, part in enumerate(axes)])
    return array


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask (X, Y, Z) with its holes: what no path through face neighbours joins to the border."""
    from scipy import ndimage  # the only part of a plan that needs it, and imported plans alone have it

    result: NDArray[np.bool_] = ndimage.binary_fill_holes(mask)
    return result


def _weights(size: int, target: int, order: Literal[0, 1, 3]) -> AxisWeights:
    """One axis. Place j of the target lies at (j + 1/2) * size / target - 1/2 of the source."""
    place = size / target * (np.arange(target, dtype=np.float64) + 0.5) - 0.5
    if order == 0:
        nearest = np.clip(np.floor(place + 0.5).astype(int), 0, size - 1)
        return AxisWeights(np.eye(size, dtype=np.float32)[nearest])
    if order == 1:
        place = np.clip(place, 0, size - 1)  # the outermost voxel goes on
        return AxisWeights(
            np.maximum(1 - np.abs(place[:, None] - np.arange(size)), 0).astype(np.float32)
        )
    return AxisWeights(_cubic(size, place))


_PAD = 12  # voxels that SciPy repeats at either end before it solves for a spline's coefficients


def _cubic(size: int, place: NDArray[np.float64]) -> NDArray[np.float32]:
    """Weights of cubic B-spline interpolation (Unser 1999, doi:10.1109/79.799930).

    The coefficients c of a row of values f solve (c[i-1] + 4 c[i] + c[i+1]) / 6 = f[i]; the outermost
    voxels are repeated, far enough for the end condition not to matter.
    """
    long = size + 2 * _PAD
    values = np.eye(size)[np.clip(np.arange(long) - _PAD, 0, size - 1)]
    system = (4 * np.eye(long) + np.eye(long, k=1) + np.eye(long, k=-1)) / 6
    system[0, 0] += 1 / 6  # mirrored about the edge of the last voxel
    system[-1, -1] += 1 / 6
    coefficients = np.linalg.solve(system, values)
    distance = np.abs(place[:, None] + _PAD - np.arange(long))
    basis = np.where(
        distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
    )
    weights: NDArray[np.float64] = basis @ coefficients
    weights[np.abs(weights) < _NEGLIGIBLE] = 0
    single: NDArray[np.float32] = weights.astype(np.float32)
    return single
