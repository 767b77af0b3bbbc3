"""Making a person's label map from a segmentation: FreeSurfer's, a phantom's, or any other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.simulation.anatomy import Anatomy
from segdistill.simulation.ct import fat_push, under_fat
from segdistill.simulation.mri import Head
from segdistill.simulation.rendering.labelmap import AIR, BORDER, DEPTH_MM, LabelMap, Tissue
from segdistill.simulation.rendering.tissues import UNKNOWN, Tissues, read_tissues
from segdistill.sites.imports.cubes import are_cubes
from segdistill.sites.imports.labels import CodeMap, codes_in
from segdistill.sites.protocol import read_protocol
from segdistill.volume import Volume

_CENTRES = 2000  # remembered voxels per structure
_CLOSED_MM = 4.0  # sulci narrower than twice that count as brain when a skull is stripped
_FAR = 127  # depth that stands for all beyond
_LAYERS, _LOOPS = 6, 4  # of what a hollow organ holds, told apart
_COARSE_MM, _NODES_MM = 3.0, 6.0  # grid on which the fat is looked for, and on which it grows
_VENTRICLES = read_protocol("brain_mri").code_of("ventricles")


def make_label_map(
    labels: Volume, structures: Mapping[int, int], tissues: Tissues, *, seed: int = 0
) -> LabelMap:
    """Make a label map from a segmentation.

    Args:
        labels: integer codes on cubic voxels, axes in any order; e.g. FreeSurfer's.
        structures: source code to the task's label code (0: background, 255: ignored), as
            ``sites.imports.labels.CodeMap.codes``. A code that isn't listed is background.
        tissues: what the codes look like. A code that isn't listed is a tissue of its own that gets any
            brightness at every draw, and in a head is brain if it is a structure.
        seed: of the remembered places.

    Raises:
        SegdistillError: voxels aren't cubes, or codes are more than 256, or all is air.
    """
    if not are_cubes(labels):
        edges = " x ".join(f"{size:g}" for size in labels.spacing_mm)
        raise SegdistillError(f"the label map's voxels are {edges} mm, no cubes. Import the site again.")
    sizes = labels.spacing_mm
    turned = nib.orientations.apply_orientation(
        labels.array, nib.orientations.io_orientation(labels.affine)
    )
    table, source = _compact(codes_in(turned), structures, tissues)
    if len(table) < 2:
        raise SegdistillError("the label map has nothing but air. Check the export.")
    _limited(table)
    compact = CodeMap(source, {}).apply(turned)
    content = _extent(compact > 0)
    layered, table = _layered(np.pad(compact[tuple(slice(*e) for e in content)], BORDER), table)
    _limited(table)
    compact = layered.astype(np.uint8)
    kinds = list(dict.fromkeys(entry[1] for entry in table))
    is_brain, is_arm, grows = (
        np.array([getattr(tissue, name) for _, tissue, _ in table]) for name in ("brain", "arm", "grows")
    )
    inside = is_brain[compact] if is_brain.any() else (compact > 0) & ~is_arm[compact]
    if not inside.any():
        inside = compact > 0
    voxel = float(np.mean(sizes))
    structure = np.array([code for code, _, _ in table], np.uint8)
    core = kept = _extent(inside)
    depth = np.zeros((0, 0, 0), np.int8)
    if tissues.modality == "ct":
        push, step, under = _fat_push(inside & ~grows[compact], voxel)
        core = under or kept
    else:
        push, step = _push(grows[compact], voxel)
        depth = _depth(inside, voxel)
    return LabelMap(
        codes=torch.from_numpy(compact),
        depth=torch.from_numpy(depth),
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
        kept=kept,
        core=core,
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
    has_brain = any(tissue.brain for tissue in tissues.tissues.values())
    for code in sorted(codes):
        structure = structures.get(code, 0)
        if code in tissues.part_of:
            name, part = tissues.part_of[code]
            row = (structure, tissues.tissues[name], part)
        else:
            brain = has_brain and structure not in (0, IGNORED)
            row = (structure, replace(UNKNOWN[tissues.modality], name=f"unknown {code}", brain=brain), 0)
        source[code] = rows.setdefault(row, len(rows))
    return list(rows), source


def _limited(table: Sequence[Row]) -> None:
    if len(table) > 256:
        raise SegdistillError(
            f"the label map has {len(table)} tissues, 256 fit. Name several codes as one tissue."
        )


def _layered(compact: NDArray[np.uint8], table: list[Row]) -> tuple[NDArray[np.int16], list[Row]]:
    """What hollow organs hold, in layers one above the other in every loop: more codes, more rows.

    People lie on their back, so gas rises to the front. Loops of an organ are numbered in turns.
    """
    found, rows = compact.astype(np.int16), list(table)
    for code, (structure, tissue, part) in enumerate(table):
        if not tissue.gas:
            continue
        loops, _ = ndimage.label(compact == code)
        numbers: dict[tuple[int, int], int] = {}
        for index, box in enumerate(ndimage.find_objects(loops)):
            own = loops[box] == index + 1
            behind = np.arange(own.shape[1]) * _LAYERS // own.shape[1]
            for layer in sorted(set(behind.tolist())):
                key = index % _LOOPS, layer
                if key not in numbers:
                    height = (layer + 0.5) / _LAYERS
                    numbers[key] = len(rows) if numbers else code
                    row = structure, replace(tissue, loop=key[0], height=height), part
                    if numbers[key] == code:
                        rows[code] = row
                    else:
                        rows.append(row)
                found[box][own & (behind == layer)[None, :, None]] = numbers[key]
    return found, rows


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


def _fat_push(
    lean: NDArray[np.bool_], voxel_mm: float
) -> tuple[NDArray[np.float32], float, tuple[tuple[int, int], ...]]:
    """The simulated trunks' push of growing fat, its nodes' distance, and the box of what lies under.

    Where nothing does, there are no nodes and no box.
    """
    step = max(1, round(_COARSE_MM / voxel_mm))
    core = under_fat(lean[::step, ::step, ::step])
    apart = max(_NODES_MM / voxel_mm, 1.0)
    if not core.any():
        return np.zeros((3, 0, 0, 0), np.float32), apart, ()
    shape = [int(np.ceil(n / apart)) + 1 for n in lean.shape]
    push = fat_push(core, voxel_mm * step, np.indices(shape).astype(np.float64) * (apart / step))
    box = tuple((step * start, step * stop) for start, stop in _extent(core))
    return push.astype(np.float32), apart, box


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
    for code in np.flatnonzero(np.bincount(flat, minlength=IGNORED)[:IGNORED])[1:]:
        places = np.flatnonzero(flat == code)
        chosen = np.sort(random.choice(places, min(_CENTRES, len(places)), replace=False))
        at = np.stack(np.unravel_index(chosen, structure.shape), axis=1)
        found.append(np.column_stack([np.full(len(at), code), at]).astype(np.int16))
    return np.concatenate(found)


def _three(values: Any) -> tuple[float, float, float]:
    x, y, z = values
    return float(x), float(y), float(z)
