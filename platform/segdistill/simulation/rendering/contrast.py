"""How bright every code of a label map is in one scan.

A contrast is a function from a label map to :class:`Brightness`. :func:`t1_like` is the one for MR; CT
would be one that draws HU by organ and phase.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdistill.simulation.rendering.knobs import RenderingKnobs
from segdistill.simulation.rendering.labelmap import AIR, LabelMap

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Brightness:
    """What every code of a map looks like in one scan; white matter is 1 in MR, HU in CT.

    Attributes:
        mean: (C,) brightness; of code 0, that of air.
        grain: (C,) standard deviation from voxel to voxel.
        patches: (C,) standard deviation of the slow variation.
    """

    mean: Array
    grain: Array
    patches: Array


Contrast = Callable[[LabelMap, RenderingKnobs, np.random.Generator], Brightness]


def t1_like(source: LabelMap, knobs: RenderingKnobs, random: np.random.Generator) -> Brightness:
    """Brightness as in a T1 scan, its tissues drawn from the ranges that ``tissues/TASK.yaml`` gives.

    In ``any_contrast`` of the draws every tissue is as bright as it likes (Billot et al. 2023), so that
    what a network learns doesn't hang on one sequence.
    """
    anchors = {AIR: 0.0, "fluid": random.uniform(*knobs.fluid), "grey": random.uniform(*knobs.grey)}
    anchors["white"] = 1.0
    tissues = source.tissues
    low, high = np.array([[anchors[name] for name in tissue.between] for tissue in tissues]).T
    bright, grain, patches = (
        random.uniform(*np.array([getattr(tissue, name) for tissue in tissues]).T)
        for name in ("bright", "grain", "patches")
    )
    mean = low + bright * (high - low)
    if random.random() < knobs.any_contrast:
        solid = np.array([tissue.name != AIR for tissue in tissues])
        mean[solid] = random.uniform(0.05, 1.2, solid.sum())
    mean *= np.exp(knobs.tissue_sd * random.standard_normal(len(tissues)))
    of = list(source.tissue)
    sides = np.exp(knobs.side_sd * random.standard_normal(len(of)))
    return Brightness(np.maximum(mean[of] * sides, 0.0), grain[of], patches[of])
