"""A small made-up label map with FreeSurfer's codes, and plans that see it as it is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.runtime.plan import Plan
from segdistill.simulation.rendering.contrast import Brightness
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.making import make_label_map
from segdistill.simulation.rendering.tissues import read_tissues
from segdistill.sites.protocol import read_protocol
from segdistill.volume import Volume

PROTOCOL = read_protocol("brain_mri")
TISSUES = read_tissues("brain_mri")
SHAPE = (26, 30, 28)  # of 4 mm

# code, centre and radii in units of half the grid; a later one covers an earlier one. 999 is unknown.
_PIECES = (
    (511, (0, 0, 0), (1.01, 1.01, 1.01)),
    (515, (0, 0, 0.0), (0.9, 0.9, 0.9)),
    (24, (0, 0, 0.05), (0.8, 0.8, 0.8)),
    (3, (-0.02, 0, 0.05), (0.7, 0.7, 0.7)),
    (2, (-0.02, 0, 0.05), (0.55, 0.55, 0.55)),
    (4, (-0.15, 0, 0.1), (0.15, 0.35, 0.2)),
    (43, (0.15, 0, 0.1), (0.15, 0.35, 0.2)),
    (10, (-0.2, -0.1, -0.2), (0.15, 0.2, 0.15)),
    (17, (0.3, -0.1, -0.3), (0.12, 0.25, 0.12)),
    (999, (0, 0.85, -0.4), (0.1, 0.1, 0.1)),
)


def head(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int32]:
    """(X, Y, Z) codes: right half of the brain with right codes."""
    half = (np.array(shape) - 1) / 2
    grid = (np.moveaxis(np.indices(shape), 0, -1) - half) / half
    codes = np.zeros(shape, np.int32)
    for code, centre, radii in _PIECES:
        codes[(((grid - centre) / radii) ** 2).sum(-1) <= 1] = code
    right = grid[..., 0] > 0
    codes[right & (codes == 3)] = 42
    codes[right & (codes == 2)] = 41
    return codes


def person(codes: NDArray[Any] | None = None, voxel_mm: float = 4.0) -> LabelMap:
    """The head as a label map."""
    array = head() if codes is None else codes
    return make_label_map(Volume(array, np.diag([voxel_mm] * 3 + [1.0])), PROTOCOL.freesurfer, TISSUES)


def plan(spacing_mm: float = 4.0, *, raw: bool = False, **others: Any) -> Plan:
    """A plan; ``raw``: one whose normalisation leaves brightness as it is."""
    how = {"scheme": "zscore"}
    if raw:
        how = {"scheme": "ct", "clip_hu": [-2000.0, 2000.0], "mean_hu": 0.0, "std_hu": 1.0}
    return Plan.from_json(
        {
            "task": "brain_mri",
            "modality": "mri",
            "orientation": "RAS",
            "spacing_mm": [spacing_mm] * 3,
            "foreground": "above_mean",
            "normalisation": how,
            "patch_size": [16, 16, 16],
            "size_divisor": [1, 1, 1],
            "mode": "windows",
            "overlap": 0.5,
            "structures": [{"code": c, "name": n} for c, n in PROTOCOL.structures.items()],
            "label_protocol": PROTOCOL.name,
        }
        | others
    )


def flat(source: LabelMap, *_: Any) -> Brightness:
    """A contrast in which every code has its own brightness, which no mixture of others has."""
    mean = np.exp(np.arange(len(source.structure)) / 7.0)
    mean[0] = 0.0
    nothing = np.zeros(len(mean))
    return Brightness(mean, nothing, nothing)
