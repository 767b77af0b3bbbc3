"""From a scan to what the network sees: orient, crop, normalise, resample.

Training and inference call the very same functions, so a network meets when it is served what it was
trained on.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.runtime import nnunet
from segdistill.runtime.memory_order import MemoryOrder
from segdistill.runtime.plan import STORED, Convention, Foreground, Normalisation, Plan
from segdistill.runtime.resample import (
    AxisWeights,
    argmax_resampled,
    axis_weights,
    resample,
    target_size,
)
from segdistill.volume import Volume, VolumeError, grid_difference

Step = Callable[[str], AbstractContextManager[Any]]

# Slices with less than this share of the fullest slice's foreground are noise in the air.
_SPECKLE = 0.01
# "Above the mean" misses dark content at the rim (cerebrospinal fluid, lung): keep this much more.
_MARGIN_MM = 10.0
# The body in CT: what is denser than this, thicker than a table's shells, looked for on a coarse grid.
_BODY_HU = -500.0
_BODY_THICK_MM = 20.0
_COARSE_MM = 4.0


@dataclass(frozen=True, eq=False)
class Geometry:
    """The way from a scan's grid to the plan's grid, for going back.

    Attributes:
        scan_shape: (X, Y, Z) of the scan as stored.
        scan_affine: (4, 4) of the scan as stored, voxel to RAS mm.
        flips: (3, 2) nibabel orientation transform from the scan's axes to the plan's.
        crop: first and one past the last voxel of the content, per axis of the plan's orientation.
        spacing_mm: of the scan, per axis of the plan's orientation.
        grid_mm: of the plan's grid.
        grid_shape: (x, y, z) of the plan's grid; its centre is the centre of the crop.
        convention: of the plan.
    """

    scan_shape: tuple[int, int, int]
    scan_affine: NDArray[np.float64]
    flips: NDArray[np.float64] = field(repr=False)
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    spacing_mm: tuple[float, float, float]
    grid_mm: tuple[float, float, float]
    grid_shape: tuple[int, int, int]
    convention: Convention = "own"

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The crop as slices of the oriented scan."""
        x, y, z = (slice(start, stop) for start, stop in self.crop)
        return x, y, z

    @property
    def _crop_shape(self) -> list[int]:
        return [stop - start for start, stop in self.crop]

    def to_grid(self, antialias: bool) -> list[AxisWeights | None]:
        """One set of weights per axis, from the crop to the plan's grid."""
        if self.convention == "nnunet":
            thick = nnunet.thick_axis(self.spacing_mm, self.grid_mm)
            order: Literal[1, 3] = 3 if antialias else 1
            return nnunet.weights_between(self._crop_shape, self.grid_shape, thick, order)
        return [
            axis_weights(stop - start, spacing, size, target, antialias)
            for (start, stop), spacing, size, target in zip(
                self.crop, self.spacing_mm, self.grid_shape, self.grid_mm, strict=True
            )
        ]

    def to_crop(self) -> list[AxisWeights | None]:
        """One set of weights per axis, from the plan's grid back to the crop, for classes."""
        if self.convention == "nnunet":
            thick = nnunet.thick_axis(self.grid_mm, self.spacing_mm)
            return nnunet.weights_between(self.grid_shape, self._crop_shape, thick, 1)
        return [
            axis_weights(size, target, stop - start, spacing, antialias=False)
            for (start, stop), spacing, size, target in zip(
                self.crop, self.spacing_mm, self.grid_shape, self.grid_mm, strict=True
            )
        ]


@dataclass(frozen=True, eq=False)
class Cropped:
    """A scan's content in the plan's orientation, at the scan's voxel size.

    Attributes:
        array: (X, Y, Z) float32, a copy.
        inside: (X, Y, Z) bool, the voxels that count as content.
        geometry: the way back to the scan's grid.
    """

    array: NDArray[np.float32]
    inside: NDArray[np.bool_]
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as the network sees it.

    Attributes:
        array: (1, X, Y, Z) float32, C-contiguous, on the plan's grid; one channel.
        geometry: the way back to the scan's grid.
    """

    array: NDArray[np.float32]
    geometry: Geometry


def preprocess(volume: Volume, plan: Plan) -> Prepared:
    """Orient, crop to the content, normalise and resample a scan: :func:`crop`, then :func:`to_grid`.

    Args:
        volume: a scan that passed :func:`~segdistill.volume.check_volume`.
        plan: the family's plan.

    Returns:
        The scan on the plan's grid. It may be smaller than a patch: padding is the windows' part.

    Raises:
        VolumeError: the scan has no foreground.
    """
    return to_grid(crop(volume, plan), plan)


def crop(volume: Volume, plan: Plan) -> Cropped:
    """Orient a scan and crop it to its content. The scan isn't needed afterwards.

    Args:
        volume: as of :func:`preprocess`.
        plan: the family's plan.

    Raises:
        VolumeError: the scan has no foreground.
    """
    turns = flips(volume, plan)
    oriented = apply_orientation(volume.array, turns)
    order = np.argsort(turns[:, 0])  # the scan's axes, one for each of the plan's
    spacing = tuple(volume.spacing_mm[axis] for axis in order)
    mask = foreground(oriented, plan.foreground, spacing)
    margin_mm = _MARGIN_MM if plan.foreground != "nonzero" else 0.0
    speckle = _SPECKLE if plan.foreground == "above_mean" else 0.0
    bounds = tuple(
        _content(counts, speckle, int(np.ceil(margin_mm / size)))
        for counts, size in zip(slice_counts(mask), spacing, strict=True)
    )
    size_on_grid = nnunet.grid_size if plan.convention == "nnunet" else target_size
    geometry = Geometry(
        scan_shape=_three(volume.array.shape),
        scan_affine=volume.affine,
        flips=turns,
        crop=_three(bounds),
        spacing_mm=_three(spacing),
        grid_mm=plan.spacing_mm,
        grid_shape=_three(
            size_on_grid(stop - start, size, target)
            for (start, stop), size, target in zip(bounds, spacing, plan.spacing_mm, strict=True)
        ),
        convention=plan.convention,
    )
    content = _copy(oriented[geometry.slices]).astype(np.float32, copy=False)
    return Cropped(content, _copy(mask[geometry.slices]), geometry)


def to_grid(cropped: Cropped, plan: Plan, step: Step = nullcontext) -> Prepared:
    """Normalise a scan's content, in place, and resample it to the plan's grid.

    Args:
        cropped: from :func:`crop`; its ``array`` is changed.
        plan: the family's plan.
        step: opened as a context around each step, with its name, for timing.
    """
    geometry = cropped.geometry
    with step("normalise"):
        content = normalise(cropped.array, cropped.inside, plan.normalisation)
    with step("resample"):
        weights = geometry.to_grid(antialias=True)
        if plan.convention == "nnunet":
            thick = nnunet.thick_axis(geometry.spacing_mm, geometry.grid_mm)
            content = nnunet.resample_scan(content, weights, thick)
        else:
            content = resample(content, weights)
    return Prepared(content[None], geometry)


def preprocess_label(label: Volume, plan: Plan, geometry: Geometry) -> NDArray[np.uint8]:
    """Bring a scan's label map to the plan's grid, for training.

    Every class is interpolated linearly and the largest wins. Over to the plan's grid and back, this
    keeps about a point of Dice more than nearest neighbour does, or than smoothing against aliasing,
    on scans of 1.4 to 4 mm for a plan of 2 mm (docs/runtime.md).

    Args:
        label: label codes on the scan's grid; codes that the plan doesn't have become background, but
            :data:`~segdistill.overlap.IGNORED` stays what it is.
        plan: the family's plan.
        geometry: of the scan, from :func:`preprocess`.

    Returns:
        (X, Y, Z) uint8 channel indices (0 background, then the plan's order, or ignored) on the plan's
        grid.

    Raises:
        SegdistillError: the label map isn't on the scan's grid.
    """
    scan = Volume(np.empty(geometry.scan_shape, np.bool_), geometry.scan_affine)
    if difference := grid_difference(scan, label):
        raise SegdistillError(
            f"the label map isn't on the grid of the scan: {difference}. Resample it to the scan, or "
            "take the label map that belongs to it."
        )
    codes = apply_orientation(label.array, geometry.flips)[geometry.slices]
    channel = np.zeros(codes.shape, np.uint8)
    kinds = (*plan.codes, IGNORED)
    for index, code in enumerate(kinds):
        if index:
            channel[codes == code] = index
    found = argmax_resampled(
        lambda index, where: (channel[where] == index).astype(np.float32),
        channel,
        len(kinds),
        geometry.to_grid(antialias=False),
    )
    found[found == plan.channels_out] = IGNORED
    return found


def foreground(
    array: NDArray[Any], rule: Foreground, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> NDArray[np.bool_]:
    """The voxels that count as content.

    Args:
        array: (X, Y, Z) intensities.
        rule: ``nonzero``; ``above_mean``: above the mean intensity of the whole array; ``body``: see
            :func:`body`.
        spacing_mm: voxel size along each axis, mm; only ``body`` asks for it.

    Raises:
        VolumeError: there are none.
    """
    mask: NDArray[np.bool_]
    if rule == "body":
        mask = body(array, spacing_mm)
    else:
        order = MemoryOrder.of(array)
        along = order.along_memory(array)
        mask = order.back(along > along.mean(dtype=np.float64) if rule == "above_mean" else along != 0)
    if not mask.any():
        raise VolumeError(f"the scan has no content: no voxel is {rule}. Check the export.")
    return mask


def body(array: NDArray[Any], spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    """The body in a CT: the largest piece denser than -500 HU and thicker than 20 mm.

    A table's shells are thinner and fall away, arms that don't touch the trunk are other pieces. Looked
    for on about every 4 mm; a corner may be missing, for which the crop's margin makes up. Where nothing
    is so thick, all that is denser than -500 HU.

    Args:
        array: (X, Y, Z) HU.
        spacing_mm: voxel size along each axis, mm.
    """
    from scipy import ndimage  # as long to import as all the rest, and CT alone needs it

    steps = [max(1, int(_COARSE_MM / size)) for size in spacing_mm]
    dense = array[:: steps[0], :: steps[1], :: steps[2]] > _BODY_HU
    across = [
        max(1, round(_BODY_THICK_MM / (size * step)))
        for size, step in zip(spacing_mm, steps, strict=True)
    ]
    # Beyond the first and the last slice the body goes on.
    padded = np.pad(dense, [(n, n) for n in across], mode="edge")
    thick = ndimage.binary_opening(padded, np.ones(across, bool))
    thick = thick[tuple(slice(n, -n) for n in across)]
    pieces, count = ndimage.label(thick)
    if not count:
        return np.asarray(array > _BODY_HU)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest = pieces == sizes.argmax()
    for axis, step in enumerate(steps):
        largest = np.repeat(largest, step, axis=axis)
    return np.asarray(largest[tuple(slice(0, n) for n in array.shape)])


def normalise(
    array: NDArray[np.float32], mask: NDArray[np.bool_], how: Normalisation
) -> NDArray[np.float32]:
    """Bring intensities to the common scale.

    Args:
        array: (X, Y, Z) float32; changed in place.
        mask: (X, Y, Z) the foreground voxels, which ``zscore`` takes its statistics from.
        how: see :class:`~segdistill.runtime.plan.Normalisation`.

    Returns:
        ``array``: (array - mean) / standard deviation.
    """
    order = MemoryOrder.of(array)
    along = order.along_memory(array)
    where: NDArray[np.bool_] | bool = True
    if how.scheme == "ct":
        if how.clip_hu is None or how.mean_hu is None or how.std_hu is None:
            raise SegdistillError("ct normalisation lacks clip_hu, mean_hu or std_hu. Make the plan.")
        np.clip(along, *how.clip_hu, out=along)
        mean, deviation = how.mean_hu, how.std_hu
    else:
        if how.region == "filled":
            mask = nnunet.filled(mask)
        inside = order.along_memory(mask)
        mean, deviation = _moments(along, np.ones_like(inside) if how.region == "crop" else inside)
        where = inside if how.region == "filled" else True
    np.subtract(along, np.float32(mean), out=along, where=where)
    np.multiply(along, np.float32(1 / max(deviation, 1e-8)), out=along, where=where)
    return array


def _moments(array: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and standard deviation of the voxels in a mask, plane by plane: no copy of all of them."""
    count = np.count_nonzero(mask)
    pairs = list(zip(array, mask, strict=True))
    mean = np.float64(sum(plane[own].sum(dtype=np.float64) for plane, own in pairs) / count)
    squares = sum(float(np.square(plane[own] - mean).sum()) for plane, own in pairs)
    return float(mean), float(np.sqrt(squares / count))


def _copy(view: NDArray[Any]) -> NDArray[Any]:
    order = MemoryOrder.of(view)
    return order.back(np.array(order.along_memory(view), order="C"))


def flips(volume: Volume, plan: Plan) -> NDArray[np.float64]:
    """How a scan's axes are turned to the plan's: a nibabel orientation transform, (3, 2)."""
    if plan.orientation == STORED:
        return np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    transform: NDArray[np.float64] = ornt_transform(
        io_orientation(volume.affine), axcodes2ornt(tuple(plan.orientation))
    )
    return transform


def slice_counts(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """How many voxels of a mask (X, Y, Z) each slice has, for the slices along each axis."""
    slowest, *others = MemoryOrder.of(mask).order
    planes = mask.transpose(slowest, *others).view(np.uint8)
    counts: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * 3
    counts[slowest] = np.array([np.count_nonzero(plane) for plane in planes], np.int64)
    # 255 bytes of one at most: their sum fits a byte, and bytes are added many at a time.
    seen = np.zeros(planes.shape[1:], np.int64)
    for start in range(0, len(planes), 255):
        seen += np.add.reduce(planes[start : start + 255], axis=0, dtype=np.uint8)
    for place, axis in enumerate(others):
        counts[axis] = seen.sum(axis=1 - place)
    return counts


def _content(counts: NDArray[np.int64], speckle: float, margin: int) -> tuple[int, int]:
    """First and one past the last slice with content, ``margin`` slices wider."""
    at = np.flatnonzero(counts > speckle * counts.max())
    return max(0, int(at[0]) - margin), min(len(counts), int(at[-1]) + 1 + margin)


def _three(values: Any) -> Any:
    x, y, z = values
    return x, y, z
