"""Dice, NSD and HD95 of one label map against its reference, and the rules for absent structures.

The figures come from MONAI: Dice by overlap, NSD with surface elements weighted by their area (the
definition of https://arxiv.org/abs/1809.04430), HD95 as the larger of the two directed 95th percentiles
between boundary voxels. All distances use the scan's own voxel size in mm, on the scan's own grid.
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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.surface_dice import compute_surface_dice


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
    only one of them has Dice 0, NSD 0 and no HD95.

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
    voxel_ml = math.prod(spacing_mm) / 1000.0
    # One pass finds all boxes; what follows then looks at a structure's own corner of the scan.
    boxes_predicted = _boxes(predicted, max(structures, default=0))
    boxes_reference = _boxes(reference, max(structures, default=0))
    scores = []
    for code, name in structures.items():
        box = _union(boxes_predicted[code - 1], boxes_reference[code - 1])
        if box is None:
            scores.append(StructureScore(name, math.nan, math.nan, math.nan, 0.0, 0.0))
            continue
        mask, truth = predicted[box] == code, reference[box] == code
        dice, nsd, hd95 = _score_masks(mask, truth, spacing_mm, tolerance_mm)
        scores.append(
            StructureScore(
                structure=name,
                dice=dice,
                nsd=nsd,
                hd95_mm=hd95,
                volume_ml=float(mask.sum()) * voxel_ml,
                reference_ml=float(truth.sum()) * voxel_ml,
            )
        )
    return scores


def _score_masks(
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> tuple[float, float, float]:
    """Dice, NSD and HD95 in mm of two masks of which at least one isn't empty."""
    if not (mask.any() and truth.any()):
        return 0.0, 0.0, math.nan
    predicted = torch.from_numpy(mask)[None, None]
    reference = torch.from_numpy(truth)[None, None]
    dice = compute_dice(predicted, reference, include_background=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI, about MONAI's own calls
        nsd = compute_surface_dice(
            predicted,
            reference,
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(spacing_mm),
            use_subvoxels=True,
        )
        hd95 = compute_hausdorff_distance(
            predicted, reference, include_background=True, percentile=95.0, spacing=list(spacing_mm)
        )
    return float(dice), float(nsd), float(hd95)


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
