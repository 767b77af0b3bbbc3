"""Scans made from label maps while training, in torch, on the training's device.

A label map says where every tissue of one person's head is; how a scan of it looks is drawn anew for
every patch, in the manner of SynthSeg (Billot et al., Medical Image Analysis 2023). From the inside out:

- ``labelmap``: a person's map, made once from a segmentation and memory-mapped;
- ``tissues``: which code is which tissue, and how bright it may be: data, one file per task;
- ``contrast``: how bright every code is in one scan; another function in its place is another modality;
- ``knobs``: how much everything may differ;
- ``smooth``: fields that change slowly in space, and the one way in which they reach the voxels;
- ``scene``: one drawn person in one drawn scanner, a handful of numbers;
- ``scanner``: what that scanner sees, wherever one looks;
- ``render``: a patch of it, normalised as the served scan would have been.
"""

from segdistill.simulation.rendering.contrast import Brightness, Contrast, t1_like
from segdistill.simulation.rendering.knobs import RenderingKnobs
from segdistill.simulation.rendering.labelmap import LabelMap, make_label_map
from segdistill.simulation.rendering.render import Rendered, render
from segdistill.simulation.rendering.tissues import Tissue, Tissues, read_tissues

__all__ = [
    "Brightness",
    "Contrast",
    "LabelMap",
    "Rendered",
    "RenderingKnobs",
    "Tissue",
    "Tissues",
    "make_label_map",
    "read_tissues",
    "render",
    "t1_like",
]
