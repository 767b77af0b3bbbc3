"""Does the quality figure tell good label maps from bad? Confidence against Dice, and limits from it.

Good scans alone can't answer. So every test scan is also spoilt on purpose, in ways in which scans are
spoilt in a hospital; the reference stays what it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, stats

from segdistill.evaluation.members import TestCase
from segdistill.files import SegdistillError
from segdistill.overlap import dice_by_code
from segdistill.runtime.quality import Limits
from segdistill.runtime.segment import Segmentator
from segdistill.sites.manifest import read_sites
from segdistill.volume import Volume, grid_difference, read_label_map, read_volume

COLUMNS = ("case", "site", "spoilt", "dice", "worst_dice", "confidence", "lowest", "verdict")
#: A column per structure follows: how much of it the reference has, ml.
REFERENCE = "_reference_ml"
DECIMALS = {"dice": 5, "worst_dice": 5, "confidence": 5, "lowest": 5}
#: Of the smallest and the largest volume that a reference has: how much further is still plausible.
ROOM = 2.0

_NONE = "as it is"


@dataclass(frozen=True)
class Sorted:
    """How well a figure sorts label maps by their Dice.

    Attributes:
        spearman: rank correlation of the figure and the Dice, in [-1, 1]; None where either is constant.
        auc: how often a bad label map has a lower figure than a good one, in [0, 1]; None without both.
        limit: below it a label map is called bad: where bad ones found and good ones spared, as shares,
            sum to most. 0 without both.
        found: share of the bad ones below the limit; None without both.
        spared: share of the good ones not below it; None without both.
    """

    spearman: float | None
    auc: float | None
    limit: float
    found: float | None
    spared: float | None


def spoilt(scan: Volume, seed: int = 0) -> dict[str, Volume]:
    """A scan in the ways in which it may come: as it is, and spoilt.

    Args:
        scan: (X, Y, Z) float32.
        seed: of the noise.
    """
    array = scan.array.astype(np.float32)
    low, high = (float(value) for value in np.percentile(array, (1, 99)))
    span = max(high - low, 1e-6)
    noise = np.random.default_rng(seed).normal(0, 0.25 * span, array.shape).astype(np.float32)
    x = np.linspace(-1, 1, array.shape[0], dtype=np.float32)[:, None, None]
    longest = int(np.argmax(array.shape))
    half = np.arange(array.shape[longest]) >= array.shape[longest] // 2
    lost = np.moveaxis(array.copy(), longest, 0)
    lost[half] = low
    upside_down = scan.affine.copy()
    upside_down[:3] *= np.array([1, 1, -1])[:, None]
    found: dict[str, NDArray[np.float32]] = {
        _NONE: array,
        "noise": array + noise,
        "blurred by 4 mm": ndimage.gaussian_filter(array, [4.0 / size for size in scan.spacing_mm]),
        "contrast inverted": np.where(array > low, low + high - array, array),
        "strong bias field": array * np.exp(1.5 * x),
        "half of it empty": np.moveaxis(lost, 0, longest),
    }
    volumes = {name: Volume(values, scan.affine) for name, values in found.items()}
    # Labels stay voxel by voxel: the header lies about the direction, as after a careless conversion.
    return volumes | {"header upside down": Volume(array, upside_down)}


def labelled_cases(sites: Path, split: str) -> list[TestCase]:
    """The labelled cases of a split, of every site below a folder.

    Raises:
        SegdistillError: there are none.
    """
    cases = [
        TestCase(
            case.case, case.subject, site.site, site.held_out, folder / case.scan, folder / case.label
        )
        for folder, site in read_sites(sites)
        for case in site.cases
        if case.split == split and case.label is not None
    ]
    if not cases:
        raise SegdistillError(f"{sites}: no labelled case of the split {split}. Name another folder.")
    return cases


def quality_table(
    segmentator: Segmentator,
    cases: Sequence[TestCase],
    progress: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Segment every case as it is and spoilt; a row each, with the columns of :data:`COLUMNS`.

    Dice is the mean over the structures of the reference, ``worst_dice`` the lowest of them;
    ``verdict`` is empty where the bundle has no limits.

    Args:
        segmentator: the model.
        cases: labelled cases that no training saw.
        progress: told one line per case.

    Raises:
        SegdistillError: a scan or a reference that can't be read or don't belong together.
    """
    structures = segmentator.bundle.plan.structures
    codes = [entry.code for entry in structures]
    rows = []
    for number, case in enumerate(cases):
        original, reference = read_volume(case.image), read_label_map(case.label)
        if difference := grid_difference(original, reference):
            raise SegdistillError(f"{case.label}: not on the grid of {case.image}: {difference}.")
        voxel_ml = abs(float(np.linalg.det(original.affine[:3, :3]))) / 1000
        volumes = [np.count_nonzero(reference.array == code) * voxel_ml for code in codes]
        there = np.array(codes)[np.array(volumes) > 0] - 1
        for name, scan in spoilt(original, number).items():
            outcome = segmentator.segment(scan)
            every = dice_by_code(outcome.labels, reference.array, max(codes))
            dice, quality = every[there], outcome.quality
            lowest = quality.lowest[1] if quality.lowest else 0.0
            rows.append(
                (
                    *(case.case, case.site, name, float(np.mean(dice)), float(np.min(dice))),
                    *(quality.confidence, lowest, quality.verdict or "", *volumes),
                )
            )
        progress(f"{case.case} ({number + 1} of {len(cases)})")
    return pd.DataFrame(rows, columns=[*COLUMNS, *(f"{one.name}{REFERENCE}" for one in structures)])


def sort(figure: NDArray[np.float64], dice: NDArray[np.float64], bad: float) -> Sorted:
    """How well a figure sorts label maps, and the limit at which it does so best.

    Args:
        figure: (N,) of each label map.
        dice: (N,) likewise.
        bad: below this Dice a label map is bad.
    """
    varied = len(set(figure)) > 1 and len(set(dice)) > 1
    spearman = float(stats.spearmanr(figure, dice).statistic) if varied else None
    wrong = dice < bad
    low, high = figure[wrong], figure[~wrong]
    if not len(low) or not len(high):
        return Sorted(spearman, None, 0.0, None, None)
    pairs = low[:, None] - high[None]
    auc = float(np.mean(pairs < 0) + np.mean(pairs == 0) / 2)
    values = np.unique(figure)
    # Between two label maps, so that the next ones of either kind have room.
    limits = [0.0, *((values[:-1] + values[1:]) / 2), 1.0]
    sums = [np.mean(low < limit) + np.mean(high >= limit) for limit in limits]
    limit = float(limits[int(np.argmax(sums))])
    return Sorted(spearman, auc, limit, float(np.mean(low < limit)), float(np.mean(high >= limit)))


def limits_from(table: pd.DataFrame, bad: float) -> Limits:
    """The limits that a bundle gets: of confidence from :func:`sort`, of volumes from the references.

    Args:
        table: from :func:`quality_table`.
        bad: below this Dice a label map is bad, by its mean and by its worst structure.
    """
    ranges = {}
    for column in (name for name in table.columns if name.endswith(REFERENCE)):
        ml = table[column].to_numpy(float)
        if ml.any():
            # Where a reference lacks it, its absence is no sign of a failure.
            least = float(ml.min()) / ROOM
            ranges[column.removesuffix(REFERENCE)] = (round(least, 3), round(ROOM * float(ml.max()), 3))
    sure, lowest = (found.limit for found in _sorted(table, bad).values())
    return Limits(round(sure, 4), round(lowest, 4), ranges)


def summary(table: pd.DataFrame, limits: Limits, bad: float) -> dict[str, Any]:
    """What a report says: how the figures sort, and what becomes of each way in which scans are spoilt.

    Args:
        table: from :func:`quality_table`.
        limits: of confidence are applied here; the verdict in the table is by the bundle's own.
        bad: below this Dice a label map is bad.
    """
    low = (table["confidence"] < limits.confidence) | (table["lowest"] < limits.lowest)
    marked = table.assign(unsure=low, check=table["verdict"] == "check", bad=table["dice"] < bad)
    figures = ["dice", "worst_dice", "confidence", "lowest", "bad", "unsure", "check"]
    means = marked.groupby("spoilt", sort=False)[figures].mean()
    return {
        "bad_below_dice": bad,
        "scans": len(table),
        "sorted_by": {name: asdict(found) for name, found in _sorted(table, bad).items()},
        "means": {
            str(name): {k: round(float(v), 4) for k, v in row.items()} for name, row in means.iterrows()
        },
        "limits": limits.to_json(),
    }


def _sorted(table: pd.DataFrame, bad: float) -> dict[str, Sorted]:
    """Both figures, each against the Dice that it is about."""
    pairs = {"confidence": "dice", "lowest": "worst_dice"}
    return {
        figure: sort(table[figure].to_numpy(float), table[dice].to_numpy(float), bad)
        for figure, dice in pairs.items()
    }
