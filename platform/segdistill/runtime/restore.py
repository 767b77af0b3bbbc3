"""From the network's logits back to a label map on the scan's own grid."""

import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.runtime.plan import Plan
from segdistill.runtime.preprocess import Geometry
from segdistill.runtime.resample import argmax_resampled


def restore(logits: NDArray[np.float32], geometry: Geometry, plan: Plan) -> NDArray[np.uint8]:
    """Resample the logits to the scan's voxels, take the best class, and undo crop and orientation.

    Memory stays at one small slab of one class at a time beside the result, whatever the number
    of classes and the size of the scan.

    Args:
        logits: (K, x, y, z) on the plan's grid, background first.
        geometry: of the scan, from :func:`~segdistill.runtime.preprocess.preprocess`.
        plan: the family's plan.

    Returns:
        (X, Y, Z) uint8 label codes on the scan's grid as stored; 0 outside the crop.

    Raises:
        SegdistillError: the logits have another shape.
    """
    expected = (plan.channels_out, *geometry.grid_shape)
    if logits.shape != expected:
        raise SegdistillError(f"logits have shape {logits.shape}, plan and scan need {expected}.")
    index = argmax_resampled(
        lambda channel, where: logits[channel][where],
        winner(logits),
        plan.channels_out,
        geometry.to_crop(),
    )
    codes = np.array(plan.codes, np.uint8)
    labels = np.zeros(geometry.scan_shape, np.uint8)
    # The same way as the scan went: a view of the result, oriented and cropped, is filled in.
    apply_orientation(labels, geometry.flips)[geometry.slices] = codes[index]
    return labels


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
