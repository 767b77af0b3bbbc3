"""Dice of label maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segdistill.overlap import IGNORED, dice_by_code

MAPS = arrays(np.uint8, (3, 2, 4), elements=st.integers(0, 4))


@given(MAPS, MAPS)
def test_dice_is_that_of_the_masks(predicted: np.ndarray, reference: np.ndarray) -> None:
    """Each code's Dice is twice the common voxels by the sum of both; NaN where neither map has it."""
    found = dice_by_code(predicted, reference, 3)
    assert found.shape == (3,)
    for code, dice in enumerate(found, start=1):
        mask, truth = predicted == code, reference == code
        if not mask.any() and not truth.any():
            assert np.isnan(dice)
        else:
            assert dice == 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def test_what_the_reference_lacks_can_be_left_out() -> None:
    """A code that is predicted alone has Dice 0, or none where the reference decides."""
    predicted, reference = np.array([[[1, 1, 2]]]), np.array([[[1, 1, 0]]])
    assert dice_by_code(predicted, reference, 2).tolist() == [1.0, 0.0]
    assert dice_by_code(predicted, reference, 2, in_reference=True) == pytest.approx(
        [1.0, np.nan], nan_ok=True
    )


def test_ignored_voxels_count_in_neither_map() -> None:
    """Dice is that of the other voxels, and a code that may lie in the ignored ones has none."""
    reference = np.array([1, 1, 0, 2, IGNORED, IGNORED])
    predicted = np.array([1, 0, 3, 2, 1, 4])
    found = dice_by_code(predicted, reference, 4)
    np.testing.assert_allclose(found, [2 / 3, 1.0, np.nan, np.nan])
    assert predicted[4] == 1
    # Without ignored voxels, what is found where there is none costs all.
    assert dice_by_code(predicted[:4], reference[:4], 4)[2] == 0
