"""Dice of two label maps, structure by structure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def dice_by_code(
    predicted: NDArray[Any], reference: NDArray[Any], highest: int, *, in_reference: bool = False
) -> NDArray[np.float64]:
    """Dice of the label codes 1 to ``highest``: twice the common voxels, divided by the sum of both.

    Args:
        predicted: (X, Y, Z) codes, not negative; those above ``highest`` count as background.
        reference: codes on the same grid.
        highest: the last code.
        in_reference: leave out what the reference lacks, too.

    Returns:
        (highest,) fractions; 0 for a code that is in one of the maps alone, NaN for one in neither
        (with ``in_reference``: for one that is not in the reference).
    """
    found, true, common = (
        np.bincount(labels.ravel(), minlength=highest + 1)[1 : highest + 1]
        for labels in (predicted, reference, predicted[predicted == reference])
    )
    counted = true > 0 if in_reference else found + true > 0
    dice: NDArray[np.float64] = np.divide(
        2.0 * common, found + true, out=np.full(highest, np.nan), where=counted, dtype=np.float64
    )
    return dice
