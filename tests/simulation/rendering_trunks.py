"""A small made-up trunk with the codes of ICRP's phantoms, and plans that see it as it is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.runtime.plan import Plan
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.making import make_label_map
from segdistill.simulation.rendering.tissues import read_tissues
from segdistill.sites.protocol import read_protocol
from segdistill.volume import Volume
from tests.torso import LAYERS, ORGANS, SPACING

PROTOCOL = read_protocol("abdominal_ct")
ICRP = PROTOCOL.maps["icrp110"]
TISSUES = read_tissues("abdominal_ct")
SHAPE = (72, 42, 44)

# ICRP's codes for TotalSegmentator's: spinal cord, spine, muscle, liver, spleen, stomach, gallbladder,
# kidneys, vessels (one code here), small bowel, colon, bladder; for the layers: skin, fat, muscle, fat.
_CODE = {79: 126, 29: 51, 86: 107, 87: 107, 5: 95, 1: 127, 6: 73, 4: 71, 2: 92, 3: 89}
_CODE |= {52: 10, 63: 10, 18: 75, 20: 77, 21: 138}
_LAYER = (123, 117, 107, 117)
_WALL = {73: 72, 75: 74, 77: 76}  # of stomach, small bowel and colon
_ARM = ((124, 36), (118, 33), (108, 25), (13, 9))  # skin, fat, muscle and bone, radii in mm


def trunk(
    shape: tuple[int, int, int] = SHAPE, voxel_mm: tuple[float, float, float] = (SPACING,) * 3
) -> NDArray[np.uint8]:
    """(X, Y, Z) codes of a trunk with arms beside it."""
    half = (np.array(shape) - 1) / 2
    at = (np.moveaxis(np.indices(shape), 0, -1) - half) * voxel_mm
    codes = np.zeros(shape, np.uint8)
    for side in (-1, 1):
        for code, radius in _ARM:
            codes[np.hypot(at[..., 0] - side * 170, at[..., 1] + 20) <= radius] = code
    for code, (width, depth, _) in zip(_LAYER, LAYERS, strict=True):
        codes[np.hypot(at[..., 0] / width, at[..., 1] / depth) <= 1] = code
    for code, _, centre, radii in ORGANS:
        ours = _CODE[code]
        away = (((at - centre) / radii) ** 2).sum(-1)
        codes[away <= 1] = _WALL.get(ours, ours)
        codes[away <= 0.6] = ours
    return codes


def person(codes: NDArray[Any] | None = None, voxel_mm: float = SPACING) -> LabelMap:
    """The trunk as a label map."""
    array = trunk() if codes is None else codes
    return make_label_map(Volume(array, np.diag([voxel_mm] * 3 + [1.0])), ICRP, TISSUES)


def plan(spacing_mm: float = SPACING, **others: Any) -> Plan:
    """A plan whose normalisation leaves HU as they are."""
    return Plan.from_json(
        {
            "task": "abdominal_ct",
            "modality": "ct",
            "orientation": "RAS",
            "spacing_mm": [spacing_mm] * 3,
            "foreground": "body",
            "normalisation": {"scheme": "ct", "clip_hu": [-2e3, 2e3], "mean_hu": 0.0, "std_hu": 1.0},
            "patch_size": [16, 16, 16],
            "size_divisor": [1, 1, 1],
            "mode": "windows",
            "overlap": 0.5,
            "structures": [{"code": c, "name": n} for c, n in PROTOCOL.structures.items()],
            "label_protocol": PROTOCOL.name,
        }
        | others
    )
