"""Label maps of thick slices on cubic voxels, their structures going smoothly from slice to slice."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.runtime.resample import (
    AxisWeights,
    Slices,
    axis_weights,
    part_of,
    resample,
    target_size,
)
from segdistill.volume import Volume

_CUBE = 0.01  # share of its longest edge by which a cube's edges may differ


def are_cubes(labels: Volume) -> bool:
    """Whether a label map's voxels are cubes."""
    return max(labels.spacing_mm) - min(labels.spacing_mm) <= _CUBE * max(labels.spacing_mm)


def to_cubes(labels: Volume) -> Volume:
    """A label map on cubes as large as its voxels' shortest edge; one of cubes already as it is.

    Shape-based interpolation (Raya and Udupa, IEEE Transactions on Medical Imaging 1990): of every code
    the signed distance from its surface is interpolated, and the code that lies deepest wins. Codes
    themselves, or shares of them, would leave steps as high as the slices are thick.

    Args:
        labels: integer codes on voxels of any shape.
    """
    if are_cubes(labels):
        return labels
    edge = min(labels.spacing_mm)
    shape = [
        target_size(size, mm, edge)
        for size, mm in zip(labels.array.shape, labels.spacing_mm, strict=True)
    ]
    axes = [
        axis_weights(size, mm, target, edge, antialias=False)
        for size, mm, target in zip(labels.array.shape, labels.spacing_mm, shape, strict=True)
    ]
    found = np.zeros(shape, labels.array.dtype)
    deepest = np.full(shape, -np.inf, np.float32)
    codes, compact = np.unique(labels.array, return_inverse=True)
    compact = compact.reshape(labels.array.shape)
    for code, box in zip(codes, ndimage.find_objects(compact + 1), strict=True):
        target, parts = _near(box, np.array(labels.spacing_mm), axes, labels.array.shape)
        inside = labels.array[tuple(columns for _, columns in parts)] == code
        depth = resample(_depth(inside, labels.spacing_mm), [weights for weights, _ in parts])
        best = deepest[target]
        found[target][depth > best] = code
        np.maximum(best, depth, out=best)
    scale = edge / np.array(labels.spacing_mm)
    affine = labels.affine.copy()
    affine[:3, :3] *= scale
    middle = (np.array(labels.array.shape) - 1) / 2
    affine[:3, 3] = labels.affine[:3, :3] @ middle + labels.affine[:3, 3]
    affine[:3, 3] -= affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Volume(found, affine)


def _near(
    box: tuple[slice, ...],
    spacing_mm: NDArray[np.float64],
    axes: Sequence[AxisWeights | None],
    shape: tuple[int, ...],
) -> tuple[Slices, list[tuple[AxisWeights | None, slice]]]:
    """Where on the target's grid a code may be that lies in a box, and what that is made of."""
    more = np.ceil(max(spacing_mm) / spacing_mm).astype(int)
    around = [
        (max(0, part.start - n), min(size, part.stop + n))
        for part, n, size in zip(box, more, shape, strict=True)
    ]
    ends = [
        ends if weights is None else weights.reach(*ends)
        for weights, ends in zip(axes, around, strict=True)
    ]
    x, y, z = (slice(*pair) for pair in ends)
    return (x, y, z), [part_of(weights, *pair) for weights, pair in zip(axes, ends, strict=True)]


def _depth(inside: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """(X, Y, Z) mm from a code's surface, positive inside; outside no more than a slice's thickness."""
    outwards = ndimage.distance_transform_edt(~inside, sampling=spacing_mm)
    inwards = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return np.asarray(np.maximum(inwards - outwards, -max(spacing_mm)), np.float32)
