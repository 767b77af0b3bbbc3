"""Separable resampling between two grids that share their centre.

Every axis has a small matrix of weights. Its rows hold a triangle (linear interpolation); where the
target grid is coarser, the triangle is as wide as the target's spacing, which keeps fine detail from
aliasing (as ``antialias=True`` does in Pillow and in ``torch.nn.functional.interpolate``). Dense
matrix products do the work: at the sizes of scans they beat gathering.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Slices = tuple[slice, slice, slice]

_SLAB_BYTES = 2**21  # of one class in float32: stays in a processor's cache


def target_size(size: int, spacing_mm: float, target_mm: float) -> int:
    """How many voxels of ``target_mm`` cover ``size`` voxels of ``spacing_mm``, at least one."""
    return max(1, int(np.floor(size * spacing_mm / target_mm + 0.5)))


def axis_matrix(size: int, spacing_mm: float, target_size: int, target_mm: float) -> Matrix | None:
    """Weights that bring one axis from a grid to another; both have the same centre.

    Row j is a triangle of half-width max(spacing, target) about the place of target voxel j, cut at
    the ends of the axis and normalised, so that every target value is a weighted mean of source
    values.

    Args:
        size: voxels of the source.
        spacing_mm: of the source.
        target_size: voxels of the target.
        target_mm: spacing of the target.

    Returns:
        (target_size, size) float32, or None where the two grids are the same.
    """
    ratio = target_mm / spacing_mm
    if size == target_size and abs(ratio - 1) * size < 0.1:  # ends move less than 1/20 of a voxel
        return None
    place = (np.arange(target_size) - (target_size - 1) / 2) * ratio + (size - 1) / 2
    distance = np.abs(place[:, None] - np.arange(size)) / max(1.0, ratio)
    weights = np.maximum(1 - distance, 0)
    matrix: Matrix = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def resample(array: NDArray[np.float32], matrices: Sequence[Matrix | None]) -> NDArray[np.float32]:
    """Apply one matrix per axis (None: leave the axis) to an (X, Y, Z) array; C-contiguous."""
    array = np.ascontiguousarray(array)
    # The axes that shrink most go first, so that the later ones have less to do.
    for axis in sorted(range(3), key=lambda axis: _growth(matrices[axis])):
        matrix = matrices[axis]
        if matrix is not None:
            array = _along(array, matrix, axis)
    return array


def argmax_resampled(
    source: Callable[[int, Slices], NDArray[Any]],
    winner: NDArray[np.uint8],
    channels: int,
    matrices: Sequence[Matrix | None],
) -> NDArray[np.uint8]:
    """The channel that is largest after resampling every channel, without storing them all.

    One slab of the target at a time, one channel after the other, with a running maximum. Slabs and
    margins in which every source voxel that has a weight is background stay background: a weighted
    mean of scores keeps a winner that wins everywhere, so nothing is lost by skipping them.

    Args:
        source: gives the scores of (channel, slices of the source grid).
        winner: (x, y, z) channel with the largest score of each source voxel; 0 is background.
        channels: number of channels.
        matrices: one per axis, or None, as from :func:`axis_matrix`.

    Returns:
        (X, Y, Z) uint8 channel indices on the target grid; the lower one where two are equal.
    """
    if all(matrix is None for matrix in matrices):
        return winner
    shape = tuple(
        size if matrix is None else len(matrix)
        for size, matrix in zip(winner.shape, matrices, strict=True)
    )
    result = np.zeros(shape, np.uint8)
    occupied = winner != 0
    if not occupied.any():
        return result
    span = [_reach(matrix, _extent(occupied, axis)) for axis, matrix in enumerate(matrices)]
    (start, stop), (y0, y1), (z0, z1) = span
    rows = max(1, _SLAB_BYTES // (4 * (y1 - y0) * (z1 - z0)))
    side = [_part(matrices[1], y0, y1), _part(matrices[2], z0, z1)]
    for x0 in range(start, stop, rows):
        x1 = min(x0 + rows, stop)
        parts = [_part(matrices[0], x0, x1), *side]
        where: Slices = (parts[0][1], parts[1][1], parts[2][1])
        if not occupied[where].any():
            continue
        small = [part[0] for part in parts]
        best = resample(source(0, where), small)
        best = best.copy() if all(matrix is None for matrix in small) else best
        index = np.zeros(best.shape, np.uint8)
        for channel in range(1, channels):
            score = resample(source(channel, where), small)
            # In place, and without a branch per voxel.
            np.copyto(index, np.uint8(channel), where=score > best)
            np.maximum(best, score, out=best)
        result[x0:x1, y0:y1, z0:z1] = index
    return result


def _along(array: NDArray[np.float32], matrix: Matrix, axis: int) -> NDArray[np.float32]:
    x, y, z = array.shape
    if axis == 0:
        product = (matrix @ array.reshape(x, y * z)).reshape(len(matrix), y, z)
    elif axis == 1:
        product = np.matmul(matrix, array)
    else:
        product = (array.reshape(x * y, z) @ matrix.T).reshape(x, y, len(matrix))
    return product.astype(np.float32, copy=False)


def _growth(matrix: Matrix | None) -> float:
    return 1.0 if matrix is None else len(matrix) / matrix.shape[1]


def _extent(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """First and one past the last index along ``axis`` at which anything is set."""
    others = tuple(other for other in range(3) if other != axis)
    at = np.flatnonzero(mask.any(axis=others))
    return int(at[0]), int(at[-1]) + 1


def _reach(matrix: Matrix | None, extent: tuple[int, int]) -> tuple[int, int]:
    """The target indices to which source indices in ``extent`` contribute."""
    if matrix is None:
        return extent
    at = np.flatnonzero(matrix[:, slice(*extent)].any(axis=1))
    return int(at[0]), int(at[-1]) + 1


def _part(matrix: Matrix | None, start: int, stop: int) -> tuple[Matrix | None, slice]:
    """The rows ``start`` to ``stop`` with only the source columns they use, and those columns."""
    if matrix is None:
        return None, slice(start, stop)
    used = np.flatnonzero(matrix[start:stop].any(axis=0))
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return np.ascontiguousarray(matrix[start:stop, columns]), columns
