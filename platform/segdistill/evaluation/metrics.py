"""Dice, NSD and HD95 of one label map against its reference, and the rules for absent structures.

NSD and HD95 are taken from the same surface elements, weighted by their area (the definitions of
https://arxiv.org/abs/1809.04430): NSD is the share of both surfaces within the tolerance, HD95 the
larger of the two directed 95th percentiles. MONAI finds the elements, their areas and their distances,
in mm of the scan's own voxel size, on the scan's own grid.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.overlap import dice_by_code, without_ignored

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.metrics.utils import get_edge_surface_distance


@dataclass(frozen=True)
class StructureScore:
    """How well one structure of one case was found.

    Attributes:
        structure: the structure's name.
        dice: overlap in [0, 1]; NaN where the structure is in neither map.
        nsd: normalised surface Dice in [0, 1]; NaN where the structure is in neither map.
        hd95_mm: 95th percentile Hausdorff distance in mm; NaN where it is missing from either map,
            as no distance exists then.
        volume_ml: predicted volume, ml.
        reference_ml: reference volume, ml.
    """

    structure: str
    dice: float
    nsd: float
    hd95_mm: float
    volume_ml: float
    reference_ml: float


def score_label_map(
    predicted: NDArray[Any],
    reference: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    structures: Mapping[int, str],
    tolerance_mm: float,
) -> list[StructureScore]:
    """Score every structure of a label map.

    A structure that is in neither map has no score (NaN) and is left out of every mean. One that is in
    only one of them has Dice 0, NSD 0 and no HD95. Voxels that the reference ignores count in neither
    map, and as a structure may lie in them, one that such a reference lacks has no score.

    Args:
        predicted: (X, Y, Z) label codes.
        reference: (X, Y, Z) label codes on the same grid.
        spacing_mm: voxel size along X, Y and Z, mm.
        structures: label code to name; the order of the result.
        tolerance_mm: surface distance that NSD counts as agreement, mm.

    Returns:
        One score per structure.

    Raises:
        SegdistillError: the maps differ in shape.
    """
    if predicted.shape != reference.shape:
        raise SegdistillError(
            f"the predicted label map has shape {predicted.shape}, its reference {reference.shape}; "
            "both must be on the scan's grid."
        )
    predicted, ignores = without_ignored(predicted, reference)
    voxel_ml = math.prod(spacing_mm) / 1000.0
    # One pass finds all boxes; what follows then needs only a structure's own part of the scan.
    boxes_predicted = _boxes(predicted, max(structures, default=0))
    boxes_reference = _boxes(reference, max(structures, default=0))
    dice = dice_by_code(predicted, reference, max(structures, default=0))
    scores = []
    for code, name in structures.items():
        box = _union(boxes_predicted[code - 1], boxes_reference[code - 1])
        if box is None or (ignores and boxes_reference[code - 1] is None):
            scores.append(StructureScore(name, math.nan, math.nan, math.nan, 0.0, 0.0))
            continue
        mask, truth = predicted[box] == code, reference[box] == code
        nsd, hd95 = _surface_scores(mask, truth, spacing_mm, tolerance_mm)
        scores.append(
            StructureScore(
                structure=name,
                dice=float(dice[code - 1]),
                nsd=nsd,
                hd95_mm=hd95,
                volume_ml=float(mask.sum()) * voxel_ml,
                reference_ml=float(truth.sum()) * voxel_ml,
            )
        )
    return scores


def _surface_scores(
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> tuple[float, float]:
    """NSD and HD95 in mm of two masks of which at least one isn't empty."""
    if not (mask.any() and truth.any()):
        return 0.0, math.nan
    # oneDNN has no fast way for the one channel in which MONAI looks for surface elements.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and MONAI, about their own calls
        with torch.backends.mkldnn.flags(enabled=False):
            edges, distances, areas = get_edge_surface_distance(
                torch.from_numpy(mask),
                torch.from_numpy(truth),
                spacing=list(spacing_mm),
                use_subvoxels=True,
                symmetric=True,
            )
    away = [np.asarray(each, dtype=np.float64) for each in distances]
    weights = [np.asarray(area[edge], dtype=np.float64) for area, edge in zip(areas, edges, strict=True)]
    near = sum(float(w[a <= tolerance_mm].sum()) for a, w in zip(away, weights, strict=True))
    nsd = near / sum(float(w.sum()) for w in weights)
    return nsd, max(map(_percentile95, away, weights))


def _percentile95(distances: NDArray[np.float64], areas: NDArray[np.float64]) -> float:
    """The distance within which 95% of a surface's area lies, mm; (elements,) each."""
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order])
    # Rounding must not push the last element out.
    at = min(int(np.searchsorted(covered, 0.95 * covered[-1])), len(order) - 1)
    return float(distances[order[at]])


Box = tuple[slice, slice, slice]


def _boxes(labels: NDArray[Any], highest: int) -> list[Box | None]:
    """Bounding boxes of label codes 1..``highest``; None where a code doesn't occur."""
    found = ndimage.find_objects(labels.astype(np.int32, copy=False), highest)
    return [cast("Box | None", box) for box in found]


def _union(first: Box | None, second: Box | None) -> Box | None:
    """The smallest box around both, or the one that exists, or None."""
    if first is None or second is None:
        return first or second
    x, y, z = (
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True)
    )
    return x, y, z
