"""Dice of two label maps, structure by structure, and the code of voxels that count nowhere."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: In a label map and as a channel: what the voxel is can't be told. Nothing is learned from it, and it
#: counts in no score.
IGNORED = 255


def dice_by_code(
    predicted: NDArray[Any], reference: NDArray[Any], highest: int, *, in_reference: bool = False
) -> NDArray[np.float64]:
    """Dice of the label codes 1 to ``highest``: twice the common voxels, divided by the sum of both.

    Args:
        predicted: (X, Y, Z) codes, not negative; those above ``highest`` count as background.
        reference: codes on the same grid. Voxels that are :data:`IGNORED` count in neither map.
        highest: the last code, below :data:`IGNORED`.
        in_reference: leave out what the reference lacks, too.

    Returns:
        (highest,) fractions; 0 for a code that is in one of the maps alone, NaN for one in neither
        (with ``in_reference``, or where the reference has ignored voxels, in which it may lie: for one
        that is not in the reference).
    """
    predicted, ignores = without_ignored(predicted, reference)
    found, true, common = (
        np.bincount(labels.ravel(), minlength=highest + 1)[1 : highest + 1]
        for labels in (predicted, reference, predicted[predicted == reference])
    )
    counted = true > 0 if in_reference or ignores else found + true > 0
    dice: NDArray[np.float64] = np.divide(
        2.0 * common, found + true, out=np.full(highest, np.nan), where=counted, dtype=np.float64
    )
    return dice


def without_ignored(predicted: NDArray[Any], reference: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """The prediction with background where the reference is ignored, and whether it is anywhere."""
    ignored = reference == IGNORED
    if not ignored.any():
        return predicted, False
    return np.where(ignored, predicted.dtype.type(0), predicted), True
