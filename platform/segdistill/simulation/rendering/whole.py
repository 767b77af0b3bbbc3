"""A whole drawn scan with its label map, as it would lie in a file: what val and test are made of."""

from collections.abc import Mapping

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from segdistill.simulation.rendering.contrast import Contrast
from segdistill.simulation.rendering.knobs import RenderingKnobs
from segdistill.simulation.rendering.making import make_label_map
from segdistill.simulation.rendering.modality import RENDERINGS
from segdistill.simulation.rendering.scanner import Look, look_up, scan
from segdistill.simulation.rendering.tissues import read_tissues
from segdistill.sites.draw import Draw, Render
from segdistill.volume import Volume

_INT16 = np.iinfo(np.int16)


def renderer(task: str, knobs: RenderingKnobs | None = None, contrast: Contrast | None = None) -> Render:
    """What draws whole scans of a task from label maps.

    It takes a label map and the task's code of each of its codes, and gives a function from a generator
    to a scan, int16 on voxels of the label map's size with its axes in a random order, and its label
    map, (X, Y, Z) uint8 in the task's codes, or ignored, on the same grid. White matter is 1000 in MR;
    CT is in HU.

    Args:
        task: whose tissues the codes are.
        knobs: how much people and scanners differ; None: as usual in the task's modality.
        contrast: how bright every code is; None: likewise.
    """
    tissues = read_tissues(task)
    how = RENDERINGS[tissues.modality]

    def person(labels: Volume, structures: Mapping[int, int]) -> Draw:
        source = make_label_map(labels, structures, tissues)

        def draw(random: np.random.Generator) -> tuple[Volume, NDArray[np.uint8]]:
            scene = how.scene(source, knobs or how.usual, contrast or how.contrast, random)
            edge = source.voxel_mm
            x, y, z = (
                np.arange(low + edge / 2, high, edge)
                for low, high in zip(scene.stored.low, scene.stored.high, strict=True)
            )
            image, codes = scan(source, scene, Look((x, y, z), (edge, edge, edge)), random)
            stored = np.clip(np.rint(how.unit * image.numpy()), _INT16.min, _INT16.max).astype(np.int16)
            structure = look_up(np.array(source.structure, np.uint8), codes).numpy()
            affine = np.diag([edge, edge, edge, 1.0])
            affine[:3, 3] = x[0], y[0], z[0]
            turn = np.column_stack([random.permutation(3), random.choice([-1, 1], 3)])
            turned = affine @ inv_ornt_aff(turn, stored.shape)
            return (
                Volume(np.ascontiguousarray(apply_orientation(stored, turn)), turned),
                np.ascontiguousarray(apply_orientation(structure, turn)),
            )

        return draw

    return person
