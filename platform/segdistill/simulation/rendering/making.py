"""Making a person's label map from a segmentation: FreeSurfer's, or any other."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.simulation.anatomy import Anatomy
from segdistill.simulation.mri import Head
from segdistill.simulation.rendering.labelmap import AIR, BORDER, DEPTH_MM, UNKNOWN, LabelMap, Tissue
from segdistill.simulation.rendering.tissues import Tissues, read_tissues
from segdistill.sites.imports.labelmaps import not_cubes
from segdistill.sites.imports.labels import CodeMap, codes_in
from segdistill.sites.protocol import read_protocol
from segdistill.volume import Volume

_CENTRES = 2000  # remembered voxels per structure
_CLOSED_MM = 4.0  # sulci narrower than twice that count as brain when a skull is stripped
_FAR = 127  # depth that stands for all beyond
_VENTRICLES = read_protocol("brain_mri").code_of("ventricles")


def make_label_map(
    labels: Volume, structures: Mapping[int, int], tissues: Tissues, *, seed: int = 0
) -> LabelMap:
    """Make a label map from a segmentation.

    Args:
        labels: integer codes on cubic voxels, axes in any order; e.g. FreeSurfer's.
        structures: source code to the task's label code (0: background), as
            ``sites.imports.labels.CodeMap.codes``. A code that isn't listed is background.
        tissues: what the codes look like. A code that isn't listed is a tissue of its own that gets any
            brightness at every draw, and is brain if it is a structure.
        seed: of the remembered places.

    Raises:
        SegdistillError: voxels aren't cubes, or codes are more than 256, or all is air.
    """
    if why := not_cubes(labels):
        raise SegdistillError(f"the label map: {why}.")
    sizes = labels.spacing_mm
    turned = nib.orientations.apply_orientation(
        labels.array, nib.orientations.io_orientation(labels.affine)
    )
    table, source = _compact(codes_in(turned), structures, tissues)
    if len(table) > 256:
        raise SegdistillError(
            f"the label map has {len(table)} tissues, 256 fit. Name several codes as one tissue."
        )
    if len(table) < 2:
        raise SegdistillError("the label map has nothing but air. Check the export.")
    kinds = list(dict.fromkeys(entry[1] for entry in table))
    compact = CodeMap(source, {}).apply(turned)
    content = _extent(compact > 0)
    compact = np.pad(compact[tuple(slice(*e) for e in content)], BORDER)
    is_brain = np.array([tissue.brain for _, tissue, _ in table])
    inside = is_brain[compact] if is_brain[np.unique(compact)].any() else compact > 0
    voxel = float(np.mean(sizes))
    structure = np.array([code for code, _, _ in table], np.uint8)
    grows = np.array([tissue.grows for _, tissue, _ in table])[compact]
    push, step = _push(grows, voxel)
    return LabelMap(
        codes=torch.from_numpy(compact),
        depth=torch.from_numpy(_depth(inside, voxel)),
        push=torch.from_numpy(push),
        places=torch.from_numpy(_places(structure[compact], np.random.default_rng([seed, 0xCE]))),
        voxel_mm=voxel,
        push_step=step,
        structure=tuple(structure.tolist()),
        tissue=tuple(kinds.index(tissue) for _, tissue, _ in table),
        tissues=tuple(kinds),
        counts=tuple(np.bincount(compact.ravel(), minlength=len(table)).tolist()),
        centre=_three(ndimage.center_of_mass(inside)),
        content=tuple((BORDER, BORDER + stop - start) for start, stop in content),
        brain=_extent(inside),
    )


def write_person(labels: Volume, structures: Mapping[int, int], stem: Path, *, task: str) -> None:
    """Make a label map of a task (:func:`make_label_map`) and write it (:meth:`LabelMap.write`)."""
    make_label_map(labels, structures, read_tissues(task)).write(stem)


Row = tuple[int, Tissue, int]  # structure's code, tissue, part of the tissue


def _compact(
    codes: set[int], structures: Mapping[int, int], tissues: Tissues
) -> tuple[list[Row], dict[int, int]]:
    """The distinct rows of the compact table, air first, and the row of every source code."""
    rows: dict[Row, int] = {(0, tissues.tissues[AIR], 0): 0}
    source = {}
    for code in sorted(codes):
        structure = structures.get(code, 0)
        if code in tissues.part_of:
            name, part = tissues.part_of[code]
            row = (structure, tissues.tissues[name], part)
        else:
            row = (structure, replace(UNKNOWN, name=f"unknown {code}", brain=structure > 0), 0)
        source[code] = rows.setdefault(row, len(rows))
    return list(rows), source


def _extent(inside: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    found = ndimage.find_objects(inside.astype(np.uint8))
    return tuple((part.start, part.stop) for part in found[0])


def _depth(inside: NDArray[np.bool_], voxel_mm: float) -> NDArray[np.int8]:
    """Signed distance from the brain's surface, its sulci closed: strippers don't follow them inwards.

    Farther than ``_CLOSED_MM`` from the brain it is the distance to the brain; elsewhere, that much less
    the distance to where that begins.
    """
    depth = np.full(inside.shape, _FAR, np.int8)
    reach = int(np.ceil(_FAR * DEPTH_MM / voxel_mm))
    near = tuple(slice(max(0, start - reach), stop + reach) for start, stop in _extent(inside))
    # Voxels' centres lie half a voxel from the surface between them.
    outward = (ndimage.distance_transform_edt(~inside[near]) - 0.5) * voxel_mm
    closed = outward < _CLOSED_MM
    inward = _CLOSED_MM - (ndimage.distance_transform_edt(closed) - 0.5) * voxel_mm
    signed = np.where(closed, inward, outward)
    depth[near] = np.clip(np.rint(signed / DEPTH_MM), -_FAR, _FAR)
    return depth


def _push(grows: NDArray[np.bool_], voxel_mm: float) -> tuple[NDArray[np.float32], float]:
    """The simulated heads' push of growing ventricles, on the same kind of nodes."""
    if not grows.any():
        return np.zeros((3, 0, 0, 0), np.float32), 1.0
    head = Head(
        Anatomy(
            image=np.broadcast_to(0.0, grows.shape),
            labels=grows * np.uint8(_VENTRICLES),
            affine=np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0]),
            structures={},
            label_protocol="",
        )
    )
    return head.ventricle_push.astype(np.float32), head.lattice_step


def _places(structure: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.int16]:
    flat = structure.reshape(-1)
    found = [np.empty((0, 4), np.int16)]
    for code in np.flatnonzero(np.bincount(flat))[1:]:
        places = np.flatnonzero(flat == code)
        chosen = np.sort(random.choice(places, min(_CENTRES, len(places)), replace=False))
        at = np.stack(np.unravel_index(chosen, structure.shape), axis=1)
        found.append(np.column_stack([np.full(len(at), code), at]).astype(np.int16))
    return np.concatenate(found)


def _three(values: Any) -> tuple[float, float, float]:
    x, y, z = values
    return float(x), float(y), float(z)
