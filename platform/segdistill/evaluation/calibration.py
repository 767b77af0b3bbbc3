"""Is a model as sure as it is right? Expected calibration error, after Guo et al. 2017."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segdistill.evaluation.members import Member, TestCase
from segdistill.overlap import IGNORED
from segdistill.runtime.backend import OnnxBackend
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.preprocess import preprocess, preprocess_label
from segdistill.runtime.windows import predict
from segdistill.volume import read_label_map, read_volume

BINS = 15
COLUMNS = ("model", "confidence", "accuracy", "voxels")
#: Decimals of the figures in the file.
DECIMALS = {"confidence": 5, "accuracy": 5}


def calibration_curves(
    family: Sequence[Member],
    cases: Sequence[TestCase],
    progress: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Confidence and accuracy of every member in 15 bins of equal width, over all voxels that matter.

    A voxel of the plan's grid matters if reference or prediction has a structure there; the air around
    a head would make any model look calibrated. Its confidence is the largest softmax value.

    Args:
        family: the members.
        cases: the cases that are looked at.
        progress: told one line per case.

    Returns:
        A row per member and bin with the columns of :data:`COLUMNS`: the bin's mean confidence, its
        share of right voxels (both 0 in an empty bin) and its number of voxels.
    """
    bundles = [Bundle.read(member.folder) for member in family]
    backends = [OnnxBackend(bundle.model) for bundle in bundles]
    sums = np.zeros((len(family), 3, BINS))
    for case in cases:
        scan, reference = read_volume(case.image), read_label_map(case.label)
        plan = bundles[0].plan
        prepared = preprocess(scan, plan)
        truth = preprocess_label(reference, plan, prepared.geometry)
        for number, (bundle, backend) in enumerate(zip(bundles, backends, strict=True)):
            sums[number] += binned(predict(prepared.array, bundle.plan, backend), truth)
        progress(f"calibration of {case.case}")
    rows = []
    for member, (sure, right, voxels) in zip(family, sums, strict=True):
        filled = np.maximum(voxels, 1)
        for mean, share, number in zip(sure / filled, right / filled, voxels, strict=True):
            rows.append((member.name, mean, share, int(number)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def binned(logits: NDArray[np.float32], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Sum of confidences, number of right voxels and number of voxels by bin: (3, BINS).

    Args:
        logits: (K, X, Y, Z).
        truth: (X, Y, Z) channel indices; ignored voxels are left out.
    """
    winner = logits.argmax(axis=0)
    matters = ((winner > 0) | (truth > 0)) & (truth != IGNORED)
    values = logits[:, matters].astype(np.float64)
    confidence = 1 / np.exp(values - values.max(axis=0)).sum(axis=0)
    right = winner[matters] == truth[matters]
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack(
        [np.bincount(place, weights, minlength=BINS) for weights in (confidence, right, None)]
    )


def expected_calibration_error(curves: pd.DataFrame) -> dict[str, float]:
    """By member: the mean gap between confidence and accuracy, bins weighted with their voxels."""
    gaps = (curves["confidence"] - curves["accuracy"]).abs() * curves["voxels"]
    voxels = curves.groupby("model", sort=False)["voxels"].sum()
    sums = gaps.groupby(curves["model"], sort=False).sum()
    return {str(name): float(sums[name] / max(voxels[name], 1)) for name in voxels.index}
