"""Confidence against accuracy."""

import numpy as np
import pandas as pd
import pytest

from segdistill.evaluation.calibration import BINS, binned, expected_calibration_error
from segdistill.overlap import IGNORED


def logits_of(confidence: float, winner: np.ndarray, classes: int = 3) -> np.ndarray:
    """Logits (K, X, Y, Z) whose softmax gives the winner ``confidence``, the others the rest."""
    odds = np.log(confidence * (classes - 1) / (1 - confidence))
    return np.stack([np.where(winner == k, odds, 0.0) for k in range(classes)]).astype(np.float32)


def curves(sums: np.ndarray) -> pd.DataFrame:
    """A model's rows from what :func:`binned` gives."""
    sure, right, voxels = sums
    filled = np.maximum(voxels, 1)
    return pd.DataFrame(
        {"model": "it", "confidence": sure / filled, "accuracy": right / filled, "voxels": voxels}
    )


@pytest.mark.parametrize(("right", "error"), [(0.8, 0.0), (0.5, 0.3), (1.0, 0.2)])
def test_the_error_is_the_gap_between_sure_and_right(right: float, error: float) -> None:
    """A model that is 80% sure everywhere and right on a given share of voxels is off by the gap."""
    truth = np.ones((10, 10, 10), np.uint8)
    winner = np.where(np.arange(1000).reshape(truth.shape) < 1000 * right, 1, 2)
    found = expected_calibration_error(curves(binned(logits_of(0.8, winner), truth)))
    assert found["it"] == pytest.approx(error, abs=1e-5)


def test_air_does_not_count() -> None:
    """Voxels that are background in reference and prediction alike are left out."""
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0] = 1
    winner = np.where(truth == 1, 0, 0)
    winner[1] = 2
    sums = binned(logits_of(0.9, winner), truth)
    assert sums.shape == (3, BINS)
    assert sums[2].sum() == 32
    assert sums[1].sum() == 0


def test_gaps_of_either_sign_do_not_cancel() -> None:
    """A model too sure in one bin and too shy in another is not called calibrated."""
    table = pd.DataFrame(
        {"model": "it", "confidence": [0.9, 0.5], "accuracy": [0.7, 0.7], "voxels": [100, 300]}
    )
    assert expected_calibration_error(table)["it"] == pytest.approx((0.2 * 100 + 0.2 * 300) / 400)


def test_ignored_voxels_do_not_count() -> None:
    """Where the truth can't be told, being sure is neither right nor wrong."""
    winner = np.ones((4, 4, 4), int)
    truth = np.ones_like(winner)
    truth[2:] = IGNORED
    sums = binned(logits_of(0.9, winner), truth)
    assert sums[2].sum() == 32
    assert sums[1].sum() == 32
