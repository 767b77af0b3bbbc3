"""What rendering differs in from modality to modality, in one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segdistill.simulation.rendering.contrast import Contrast, in_hu, t1_like
from segdistill.simulation.rendering.knobs import USUAL, USUAL_CT, RenderingKnobs
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.scene import Scene, draw_head, draw_trunk


@dataclass(frozen=True)
class Rendering:
    """How scans of a modality are rendered.

    Attributes:
        usual: those that scans of val and test are drawn with.
        contrast: how bright every code is.
        scene: draws a person and a scanner, by the modality's knobs.
        unit: what a brightness of 1 is in a stored scan.
    """

    usual: RenderingKnobs
    contrast: Contrast
    scene: Callable[[LabelMap, Any, Contrast, np.random.Generator], Scene]
    unit: float


#: By the plan's modality.
RENDERINGS: Mapping[str, Rendering] = {
    "mri": Rendering(USUAL, t1_like, draw_head, 1000.0),
    "ct": Rendering(USUAL_CT, in_hu, draw_trunk, 1.0),
}
