"""How bright every code of a label map is in one scan.

A contrast is a function from a label map to :class:`Brightness`: :func:`t1_like` for MR, :func:`in_hu`
for CT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.simulation import hounsfield
from segdistill.simulation.rendering.knobs import CTKnobs, MRIKnobs
from segdistill.simulation.rendering.labelmap import AIR, LabelMap, Tissue

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


#: The second argument is the modality's knobs.
Contrast = Callable[[LabelMap, Any, np.random.Generator], Brightness]


def t1_like(source: LabelMap, knobs: MRIKnobs, random: np.random.Generator) -> Brightness:
    """Brightness as in a T1 scan, its tissues drawn from the ranges that ``tissues/TASK.yaml`` gives.

    In ``any_contrast`` of the draws every tissue is as bright as it likes (Billot et al. 2023), so that
    what a network learns doesn't hang on one sequence.
    """
    anchors = {AIR: 0.0, "fluid": random.uniform(*knobs.fluid), "grey": random.uniform(*knobs.grey)}
    anchors["white"] = 1.0
    tissues = source.tissues
    low, high = np.array([[anchors[name] for name in tissue.between] for tissue in tissues]).T
    bright, grain, patches = (_uniform(tissues, name, random) for name in ("bright", "grain", "patches"))
    mean = low + bright * (high - low)
    if random.random() < knobs.any_contrast:
        solid = np.array([tissue.name != AIR for tissue in tissues])
        mean[solid] = random.uniform(0.05, 1.2, solid.sum())
    mean *= np.exp(knobs.tissue_sd * random.standard_normal(len(tissues)))
    of = list(source.tissue)
    sides = np.exp(knobs.side_sd * random.standard_normal(len(of)))
    return Brightness(np.maximum(mean[of] * sides, 0.0), grain[of], patches[of])


def in_hu(source: LabelMap, knobs: CTKnobs, random: np.random.Generator) -> Brightness:
    """HU as in a CT of one phase, the same for all loops, sides and parts of a tissue.

    What stomach and bowel hold is drawn for every loop: gas down to a level, below it fluid, food and
    stool, or the contrast that was drunk.
    """
    organs = hounsfield.organ_hu(knobs.phase, knobs.organ_sd_hu, knobs.enhancement_sd, random)
    anchors = organs | {
        AIR: hounsfield.AIR,
        "water": 0.0,
        "kidney_cortex": organs["kidney"] + organs["cortex"],
    }
    names = list(dict.fromkeys(tissue.name for tissue in source.tissues))
    kinds = [next(tissue for tissue in source.tissues if tissue.name == name) for name in names]
    low, high = np.array([[anchors[name] for name in kind.between] for kind in kinds]).T
    bright, hu, grain, patches = (
        _uniform(kinds, name, random) for name in ("bright", "hu", "grain", "patches")
    )
    mean = dict(zip(names, low + bright * (high - low) + hu, strict=True))
    drunk = random.uniform(*hounsfield.ORAL_CONTRAST) if random.random() < knobs.oral_contrast else None
    filled: dict[tuple[str, int], tuple[float, float]] = {}
    for tissue in source.tissues:
        loop = tissue.name, tissue.loop
        if tissue.gas and loop not in filled:
            inside = mean[tissue.name]
            if drunk is not None and random.random() < _REACHED:
                inside = drunk + 0.5 * inside
            filled[loop] = inside, 1.0 - random.uniform(*tissue.gas)
    means = np.array([mean[tissue.name] for tissue in source.tissues])
    calm = np.ones(len(means))
    for index, tissue in enumerate(source.tissues):
        if tissue.gas:
            means[index], level = filled[tissue.name, tissue.loop]
            if tissue.height > level:
                means[index], calm[index] = _GAS_HU, 0.0
    kind = [names.index(tissue.name) for tissue in source.tissues]
    of = list(source.tissue)
    return Brightness(means[of], (calm * grain[kind])[of], (calm * patches[kind])[of])


_REACHED = 0.7  # chance that what was drunk has come as far as a loop
_GAS_HU = -960.0


def _uniform(tissues: Sequence[Tissue], name: str, random: np.random.Generator) -> Array:
    """(T,) numbers drawn from the range that every tissue gives under a name."""
    return np.asarray(random.uniform(*np.array([getattr(tissue, name) for tissue in tissues]).T))
