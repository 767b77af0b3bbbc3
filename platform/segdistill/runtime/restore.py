"""From the network's logits back to a label map on the scan's own grid."""

from collections.abc import Iterable

import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.runtime.plan import Plan
from segdistill.runtime.preprocess import Geometry
from segdistill.runtime.resample import argmax_resampled, part_of


def restore(slabs: Iterable[NDArray[np.float32]], geometry: Geometry, plan: Plan) -> NDArray[np.uint8]:
    """Resample logits to the scan's voxels, take the best class, and undo crop and orientation.

    Args:
        slabs: (K, n, y, z) on the plan's grid, background first, in the order of the first axis; from
            :func:`~segdistill.runtime.windows.predict_slabs`, or a list of all the logits.
        geometry: of the scan, from :func:`~segdistill.runtime.preprocess.preprocess`.
        plan: the family's plan.

    Returns:
        (X, Y, Z) uint8 label codes on the scan's grid as stored; 0 outside the crop.

    Raises:
        SegdistillError: the logits have another shape.
    """
    restorer = Restorer(geometry, plan)
    for slab in slabs:
        restorer.add(slab)
    return restorer.labels


class Restorer:
    """A label map that grows as logits arrive.

    Beside the label map, memory stays at one slab of logits, the few planes of the one before that the
    next voxels still need, and a small part of one class at a time, whatever the size of the scan.
    """

    def __init__(self, geometry: Geometry, plan: Plan) -> None:
        """Begin the label map of one scan.

        Args:
            geometry: of the scan.
            plan: the family's plan.
        """
        self._grid = (plan.channels_out, *geometry.grid_shape)
        self._codes = np.array(plan.codes, np.uint8)
        self._plain = plan.codes == tuple(range(plan.channels_out))  # channels are codes
        self._axes = geometry.to_crop()
        # Files hold the first axis fastest. The scan's way there is the way back: a view of the result,
        # oriented and cropped, is filled in.
        self._labels = np.zeros(geometry.scan_shape, np.uint8, order="F")
        self._crop = apply_orientation(self._labels, geometry.flips)[geometry.slices]
        self._voxels = np.zeros(plan.channels_out, np.int64)
        self._kept = np.empty((plan.channels_out, 0, *geometry.grid_shape[1:]), np.float32)
        self._arrived = 0  # planes of the grid
        self._done = 0  # planes of the crop

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(X, Y, Z) uint8 label codes on the scan's grid as stored; 0 outside the crop.

        Raises:
            SegdistillError: logits are missing.
        """
        if self._arrived != self._grid[1]:
            self._refuse((self._grid[0], self._arrived, *self._grid[2:]))
        return self._labels

    @property
    def voxels(self) -> NDArray[np.int64]:
        """(K,) voxels by channel so far; those of the background are not counted."""
        return self._voxels

    def add(self, logits: NDArray[np.float32]) -> None:
        """Take in the next planes, (K, n, y, z), which may change afterwards.

        Raises:
            SegdistillError: they have another shape, or are too many.
        """
        first = self._arrived - self._kept.shape[1]
        if self._kept.shape[1]:
            logits = np.concatenate([self._kept, logits], axis=1)
        self._arrived = first + logits.shape[1]
        expected = (self._grid[0], logits.shape[1], *self._grid[2:])
        if logits.shape != expected or self._arrived > self._grid[1]:
            self._refuse(logits.shape)
        along, *across = self._axes
        ready = self._arrived if along is None else along.ready(self._arrived)
        if ready > self._done:
            weights, columns = part_of(along, self._done, ready)
            part = logits[:, columns.start - first : columns.stop - first]
            index = argmax_resampled(
                lambda channel, where: part[channel][where],
                winner(part),
                len(part),
                [weights, *across],
            )
            for channel in range(1, len(part)):
                self._voxels[channel] += np.count_nonzero(index == channel)
            self._crop[self._done : ready] = index if self._plain else self._codes[index]
            self._done = ready
        needed = self._arrived
        if along is not None and ready < along.size:
            needed = min(needed, part_of(along, ready, ready + 1)[1].start)
        self._kept = logits[:, needed - first :].copy()

    def _refuse(self, shape: tuple[int, ...]) -> None:
        raise SegdistillError(f"logits have shape {shape}, plan and scan need {self._grid}.")


def winner(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The channel with the largest logit, (K, x, y, z) to (x, y, z); the lower one where equal.

    A running maximum over whole volumes reads memory in order, which ``argmax`` over the first
    axis does not.
    """
    best = logits[0].copy()
    index = np.zeros(best.shape, np.uint8)
    for channel in range(1, len(logits)):
        np.copyto(index, np.uint8(channel), where=logits[channel] > best)
        np.maximum(best, logits[channel], out=best)
    return index
