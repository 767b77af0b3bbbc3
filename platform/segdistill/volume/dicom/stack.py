"""From the places of single slices to one grid: their order and the affine, or why there is none."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdistill.volume.dicom.slices import Slice
from segdistill.volume.grid import VolumeError

# How far a voxel may lie from where the grid puts it, as a share of the voxel's smallest edge. Headers
# write places in decimals, some with a single one, so slices of a sound series miss the line a little.
_TOLERANCE = 0.1
# A gantry that leans less than this (degrees) is taken for rounded directions: the affine leans along.
_UPRIGHT_DEG = 1.0
# DICOM's patient coordinates run to the left and to the back, ours (RAS) to the right and to the front.
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def stack(folder: Path, slices: Sequence[Slice]) -> tuple[list[Slice], NDArray[np.float64]]:
    """The slices in their order, and the affine of their grid to RAS mm.

    DICOM PS3.3 C.7.6.2.1.1: the first three numbers of ImageOrientationPatient point along a row (the
    column index grows), the last three down a column. The step from slice to slice is the least-squares
    line through all positions; each slice's corners must lie where the grid puts them, within a tenth
    of the voxel's smallest edge.

    Raises:
        VolumeError: they are no even stack; see :func:`~segdistill.volume.read_dicom_series`.
    """
    _check_one_series(folder, slices)
    cosines = np.median([one.cosines for one in slices], axis=0)
    spacing = np.median([one.spacing for one in slices], axis=0)
    normal = np.cross(*cosines)
    normal /= np.linalg.norm(normal)
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    at = np.array([one.position for one in slices])
    gaps = np.diff(at @ normal)
    usual = float(np.median(gaps))
    tolerance = _TOLERANCE * min(edge for edge in (*spacing, usual) if edge > 0)
    _check_same_plane(folder, slices, cosines, spacing, tolerance)
    _check_distinct(folder, slices, gaps, tolerance)
    _check_one_acquisition(folder, slices)
    index = np.arange(len(at)) - (len(at) - 1) / 2
    step = index @ at / (index @ index)
    off = at - (at.mean(axis=0) + np.outer(index, step))
    if np.linalg.norm(off, axis=1).max() > tolerance:
        raise VolumeError(_off_the_line(folder, slices, off, normal, gaps, tolerance))
    lean = float(np.degrees(np.arccos(min(1.0, step @ normal / np.linalg.norm(step)))))
    if lean > _UPRIGHT_DEG:
        raise VolumeError(
            f"{folder}: every slice is shifted against the one before (a gantry tilted by {lean:.1f} "
            "degrees), so the voxels aren't boxes. Resample the series to upright slices first."
        )
    affine = np.eye(4)
    affine[:3, :2] = (cosines * spacing[:, None]).T
    affine[:3, 2] = step
    affine[:3, 3] = at.mean(axis=0) + index[0] * step
    affine[:3] = affine[:3] * _LPS_TO_RAS[:, None] + 0.0  # no -0
    return slices, affine


def _check_one_series(folder: Path, slices: Sequence[Slice]) -> None:
    files = {one.path for one in slices}
    if len(files) > 1 and any(one.frame is not None for one in slices):
        raise VolumeError(
            f"{folder}: {len(files)} files, and several frames in one of them. Give every file of an "
            "enhanced series a folder of its own."
        )
    series = Counter(one.series for one in slices)
    if len(series) > 1:
        first = {one.series: one.path.relative_to(folder) for one in reversed(slices)}
        shown = ", ".join(f"{count} like {first[uid]}" for uid, count in series.most_common(3))
        raise VolumeError(
            f"{folder}: {len(series)} series in one folder ({shown}). Give every series a folder of its "
            "own."
        )
    if len(slices) < 2:
        raise VolumeError(f"{folder}: a single slice is no volume. Export the whole series.")
    for name, values in (
        ("modality", {one.modality for one in slices}),
        ("rows and columns", {one.shape for one in slices}),
    ):
        if len(values) > 1:
            raise VolumeError(
                f"{folder}: the slices differ in {name}: {' and '.join(sorted(map(str, values))[:3])}. "
                "Mixed or reformatted series can't be stacked; export one."
            )


def _check_same_plane(
    folder: Path,
    slices: Sequence[Slice],
    cosines: NDArray[np.float64],
    spacing: NDArray[np.float64],
    tolerance: float,
) -> None:
    """Compare orientation and spacing by how far they move the corner opposite the first pixel."""
    rows, columns = slices[0].shape
    extent = np.array([columns - 1, rows - 1])
    wider = np.abs(np.array([one.spacing for one in slices]) - spacing)
    turned = np.linalg.norm(np.array([one.cosines for one in slices]) - cosines, axis=2)
    moved = {"PixelSpacing": wider @ extent, "ImageOrientationPatient": turned @ (spacing * extent)}
    for name, far in moved.items():
        if far.max() > tolerance:
            worst = slices[int(far.argmax())]
            raise VolumeError(
                f"{folder}: the slices differ in {name}: the far corner of {_named(folder, worst)} lies "
                f"{far.max():.3g} mm from where the other slices have it ({tolerance:.2g} mm are "
                "allowed). Mixed or reformatted series can't be stacked; export one."
            )


def _check_distinct(
    folder: Path, slices: Sequence[Slice], gaps: NDArray[np.float64], tolerance: float
) -> None:
    closest = int(gaps.argmin())
    if gaps[closest] <= tolerance:
        raise VolumeError(
            f"{folder}: {_named(folder, *slices[closest : closest + 2])} are at one place. Several "
            "phases, echoes or copies are in the folder; export one."
        )


def _check_one_acquisition(folder: Path, slices: Sequence[Slice]) -> None:
    """Parts one after the other are one volume; what comes back after something else is two of them."""
    for name in slices[0].acquisition:
        values = [one.acquisition[name] for one in slices]
        parts = 1 + sum(a != b for a, b in pairwise(values))
        if parts > len(set(values)):
            raise VolumeError(
                f"{folder}: slices of {len(set(values))} acquisitions lie between each other, they "
                f"differ in {name}. They are no volume together; export one acquisition."
            )


def _off_the_line(
    folder: Path,
    slices: Sequence[Slice],
    off: NDArray[np.float64],
    normal: NDArray[np.float64],
    gaps: NDArray[np.float64],
    tolerance: float,
) -> str:
    """Why the slices aren't on one even line, in mm."""
    beside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    worst = int(beside.argmax())
    if beside[worst] > tolerance:
        return (
            f"{folder}: {_named(folder, slices[worst])} lies {beside[worst]:.3g} mm beside the line "
            f"through the slices ({tolerance:.2g} mm are allowed). Parts of several scans or "
            "reconstructions are in the folder; export one."
        )
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    missing = round(float(gaps[worst]) / usual) - 1
    lost = missing > 0 and abs(gaps[worst] - (missing + 1) * usual) <= (missing + 1) * tolerance
    return (
        f"{folder}: {_named(folder, *slices[worst : worst + 2])} are {gaps[worst]:.5g} mm apart, others "
        f"{usual:.5g} mm: "
        + (f"{missing} slices are missing" if lost else "the distances are uneven")
        + ". Export the whole series again, with even distances."
    )


def _named(folder: Path, *slices: Slice) -> str:
    return " and ".join(
        str(one.path.relative_to(folder)) + ("" if one.frame is None else f" (frame {one.frame + 1})")
        for one in slices
    )
