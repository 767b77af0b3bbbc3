"""What CT shows in Hounsfield units (HU): water 0, air -1000, fat about -100.

The means of the enhanced organs are round figures within the ranges that radiology textbooks give; no
patient was measured for them. Sites simulated from a patient's CT and scans rendered from label maps
take them from here.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AIR, FAT = -1000.0, -100.0
ORAL_CONTRAST = (120.0, 320.0)  # of what stomach and bowel hold once it was drunk
TABLE_SHELL = (-150.0, 250.0)  # of a table's upper shell, in a voxel of it
_CORTEX_LEAD = 110.0  # by which the arterial kidney's outer layer is brighter

#: HU of a tissue without contrast, in the arterial and in the portal venous phase.
ENHANCEMENT: Mapping[str, tuple[float, float, float]] = {
    "spleen": (45.0, 120.0, 115.0),
    "kidney": (32.0, 115.0, 180.0),  # cortex and medulla together; the cortex leads, see _CORTEX_LEAD
    "liver": (55.0, 66.0, 108.0),
    "gallbladder": (8.0, 8.0, 9.0),
    "pancreas": (38.0, 98.0, 88.0),
    "adrenal_gland": (25.0, 62.0, 66.0),
    "artery": (42.0, 290.0, 150.0),
    "vena_cava": (42.0, 75.0, 135.0),
    "portal_vein": (42.0, 90.0, 165.0),
    "iliac_vein": (42.0, 46.0, 105.0),
    "stomach": (38.0, 68.0, 76.0),
    "small_bowel": (34.0, 76.0, 86.0),
    "colon": (34.0, 58.0, 68.0),
    "urinary_bladder": (8.0, 8.0, 10.0),
    "prostate": (36.0, 52.0, 62.0),
    "muscle": (52.0, 57.0, 62.0),
}
Phase = Literal["native", "arterial", "portal", "mixed"]


def organ_hu(
    phase: str, organ_sd_hu: float, enhancement_sd: float, rng: np.random.Generator
) -> dict[str, float]:
    """One person's mean HU by tissue, in one scan.

    Timing, dose and circulation differ from person to person, and every organ a little for itself. A fat
    liver is darker, which every eighth person's is by 10 HU and more.

    Args:
        phase: how far contrast has come, a :data:`Phase`.
        organ_sd_hu: spread of every organ's own brightness, HU.
        enhancement_sd: spread of how strongly contrast shows, relative.
        rng: where the randomness comes from.

    Returns:
        The tissues of :data:`ENHANCEMENT`, and ``cortex``: how much brighter than the kidney its outer
        layer is.
    """
    if phase == "mixed":
        phase = str(rng.choice([one for one in get_args(Phase) if one != "mixed"]))
    late = float(np.clip({"arterial": 0.0, "portal": 1.0}.get(phase, 0.0) + 0.12 * rng.normal(), 0, 1))
    strength = float(np.exp(enhancement_sd * rng.standard_normal())) * (phase != "native")
    own = organ_sd_hu * np.clip(rng.standard_normal(len(ENHANCEMENT)), -2.5, 2.5)
    fatty = 12.0 * float(np.clip(rng.standard_normal() - 0.3, 0.0, 3.0))
    hu = {}
    for (name, (native, arterial, portal)), shift in zip(ENHANCEMENT.items(), own, strict=True):
        contrast = (1.0 - late) * arterial + late * portal - native
        hu[name] = native + strength * contrast + shift - (fatty if name == "liver" else 0.0)
    hu["cortex"] = strength * (1.0 - late) * _CORTEX_LEAD
    return hu


def table_hu(across: Array, y: Array, surface: Array, shell: float, voxel_mm: float) -> Array:
    """HU of a table and the air around it: a shell, foam and another shell, 530 mm wide.

    Args:
        across: mm from the table's middle; broadcasts with the others, as the result does.
        y: mm towards the front.
        surface: where the table's surface lies, mm.
        shell: of the upper shell.
        voxel_mm: voxels' edge along ``y``.
    """
    below = surface - y
    table = np.full(below.shape, AIR)
    for depth, thick, hu in ((1.5, 3.0, shell), (24.0, 2.0, -100.0)):
        table = np.maximum(table, AIR + (hu - AIR) * _covered(below - depth, thick, voxel_mm))
    table = np.maximum(table, np.where((below > 2.0) & (below < 24.0), -940.0, AIR))
    return np.where(np.abs(across) < 265.0, table, AIR)


def _covered(distance: Array, thick: float, voxel: float) -> Array:
    """How much of a voxel a layer of ``thick`` mm covers whose middle is ``distance`` mm away."""
    return np.clip((thick / 2.0 - np.abs(distance)) / voxel + 0.5, 0.0, min(1.0, thick / voxel))
