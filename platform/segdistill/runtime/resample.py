"""Separable resampling between two grids that share their centre.

Every axis has a matrix of weights. Its rows hold a triangle (linear interpolation). For intensities,
the triangle is as wide as the target's spacing where the target grid is coarser, which keeps fine
detail from aliasing (as ``antialias=True`` does in Pillow and ``torch.nn.functional.interpolate``).
Classes are interpolated without that: smoothing before the best class is taken eats thin structures.

The matrix is a band, so it is kept as small dense blocks and applied by many small matrix products.
Those are below the size at which BLAS starts threads, which would cost more than they give here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Slices = tuple[slice, slice, slice]

_BLOCK_ROWS = 16
_SLAB_BYTES = 2**21  # of one class in float32: stays in a processor's cache


@dataclass(frozen=True, eq=False)
class AxisWeights:
    """How the values along one axis of the target are made of those of the source.

    Attributes:
        matrix: (target size, source size) float32; rows sum to one, weights are not negative.
    """

    matrix: NDArray[np.float32]

    @property
    def size(self) -> int:
        """Voxels of the target."""
        return len(self.matrix)

    @property
    def growth(self) -> float:
        """Target voxels per source voxel."""
        return len(self.matrix) / int(self.matrix.shape[1])

    @cached_property
    def blocks(self) -> list[tuple[slice, slice, NDArray[np.float32]]]:
        """(rows, columns, dense block) for every few rows, with only the columns they use."""
        found = []
        for start in range(0, self.size, _BLOCK_ROWS):
            rows = slice(start, min(start + _BLOCK_ROWS, self.size))
            columns = _used(self.matrix[rows])
            found.append((rows, columns, np.ascontiguousarray(self.matrix[rows, columns])))
        return found

    def part(self, start: int, stop: int) -> tuple["AxisWeights", slice]:
        """The weights of target voxels ``start`` to ``stop``, and the source voxels they use."""
        columns = _used(self.matrix[start:stop])
        return AxisWeights(self.matrix[start:stop, columns]), columns

    def ready(self, sources: int) -> int:
        """How many target voxels, from the first on, use only the first ``sources`` source voxels."""
        late = np.flatnonzero(self.matrix[:, sources:].any(axis=1))
        return int(late[0]) if len(late) else self.size

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """First and one past the last target voxel that source voxels ``start`` to ``stop`` touch."""
        at = np.flatnonzero(self.matrix[:, start:stop].any(axis=1))
        return (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)


def target_size(size: int, spacing_mm: float, target_mm: float) -> int:
    """How many voxels of ``target_mm`` cover ``size`` voxels of ``spacing_mm``, at least one."""
    return max(1, int(np.floor(size * spacing_mm / target_mm + 0.5)))


def axis_weights(
    size: int, spacing_mm: float, target_size: int, target_mm: float, antialias: bool
) -> AxisWeights | None:
    """Weights that bring one axis from a grid to another; both have the same centre.

    Row j is a triangle about the place of target voxel j, cut at the ends of the axis and normalised,
    so that every target value is a weighted mean of source values.

    Args:
        size: voxels of the source.
        spacing_mm: of the source.
        target_size: voxels of the target.
        target_mm: spacing of the target.
        antialias: whether the triangle's half-width is the larger of the two spacings, for
            intensities, or always the source's (plain linear interpolation), for classes.

    Returns:
        The weights, or None where the two grids are the same.
    """
    ratio = target_mm / spacing_mm
    if size == target_size and abs(ratio - 1) * size < 0.1:  # ends move less than 1/20 of a voxel
        return None
    place = (np.arange(target_size) - (target_size - 1) / 2) * ratio + (size - 1) / 2
    distance = np.abs(place[:, None] - np.arange(size)) / (max(1.0, ratio) if antialias else 1.0)
    weights = np.maximum(1 - distance, 0)
    return AxisWeights((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def resample(array: NDArray[np.float32], axes: Sequence[AxisWeights | None]) -> NDArray[np.float32]:
    """Resample an (X, Y, Z) array, one entry of ``axes`` per axis (None: leave it); C-contiguous."""
    array = np.ascontiguousarray(array)
    present = [(weights, axis) for axis, weights in enumerate(axes) if weights is not None]
    # The axes that shrink most go first, so that the later ones have less to do.
    for weights, axis in sorted(present, key=lambda entry: entry[0].growth):
        array = _along(array, weights, axis)
    return array


def argmax_resampled(
    source: Callable[[int, Slices], NDArray[Any]],
    winner: NDArray[np.uint8],
    channels: int,
    axes: Sequence[AxisWeights | None],
) -> NDArray[np.uint8]:
    """The channel that is largest after resampling every channel, without storing them all.

    One slab of the target at a time, one channel after the other, with a running maximum. Slabs and
    margins in which every source voxel that has a weight is background stay background: a weighted
    mean of scores keeps a winner that wins everywhere, so nothing is lost by skipping them.

    Args:
        source: gives the scores of (channel, slices of the source grid).
        winner: (x, y, z) channel with the largest score of each source voxel; 0 is background.
        channels: number of channels.
        axes: one per axis, or None, as from :func:`axis_weights`.

    Returns:
        (X, Y, Z) uint8 channel indices on the target grid; the lower one where two are equal.
    """
    if all(weights is None for weights in axes):
        return winner
    shape = tuple(
        size if weights is None else weights.size
        for size, weights in zip(winner.shape, axes, strict=True)
    )
    result = np.zeros(shape, np.uint8)
    occupied = winner != 0
    if not occupied.any():
        return result
    extents = [_extent(occupied, axis) for axis in range(3)]
    (start, stop), (y0, y1), (z0, z1) = (
        extent if weights is None else weights.reach(*extent)
        for weights, extent in zip(axes, extents, strict=True)
    )
    if start == stop or y0 == y1 or z0 == z1:  # only between the target's voxels
        return result
    side = [part_of(axes[1], y0, y1), part_of(axes[2], z0, z1)]
    rows = max(1, _SLAB_BYTES // (4 * (y1 - y0) * (z1 - z0)))
    for x0 in range(start, stop, rows):
        x1 = min(x0 + rows, stop)
        parts = [part_of(axes[0], x0, x1), *side]
        where: Slices = (parts[0][1], parts[1][1], parts[2][1])
        if not occupied[where].any():
            continue
        small = [part[0] for part in parts]
        best = resample(source(0, where), small)
        if np.may_share_memory(best, source(0, where)):
            best = best.copy()
        index = np.zeros(best.shape, np.uint8)
        for channel in range(1, channels):
            score = resample(source(channel, where), small)
            # In place, without a branch per voxel. Channels ascend, so the last one that was larger is
            # the largest number.
            larger = (score > best).view(np.uint8)
            np.maximum(index, np.multiply(larger, np.uint8(channel), out=larger), out=index)
            np.maximum(best, score, out=best)
        result[x0:x1, y0:y1, z0:z1] = index
    return result


def _along(array: NDArray[np.float32], weights: AxisWeights, axis: int) -> NDArray[np.float32]:
    shape = list(array.shape)
    shape[axis] = weights.size
    result = np.empty(shape, np.float32)
    for rows, columns, block in weights.blocks:
        # Views with the last axis contiguous go to BLAS as they are, one product per plane.
        if axis == 0:
            np.matmul(block, array[columns].swapaxes(0, 1), out=result[rows].swapaxes(0, 1))
        elif axis == 1:
            np.matmul(block, array[:, columns], out=result[:, rows])
        else:
            np.matmul(array[:, :, columns], block.T, out=result[:, :, rows])
    return result


def _used(rows: NDArray[np.float32]) -> slice:
    """The columns from the first to the last that any of the rows gives a weight."""
    at = np.flatnonzero(rows.any(axis=0))
    return slice(int(at[0]), int(at[-1]) + 1)


def _extent(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """First and one past the last index along ``axis`` at which anything is set."""
    others = tuple(other for other in range(3) if other != axis)
    at = np.flatnonzero(mask.any(axis=others))
    return int(at[0]), int(at[-1]) + 1


def part_of(weights: AxisWeights | None, start: int, stop: int) -> tuple[AxisWeights | None, slice]:
    """Weights of target voxels ``start`` to ``stop`` (None: same grid), and the sources they use."""
    return (None, slice(start, stop)) if weights is None else weights.part(start, stop)
