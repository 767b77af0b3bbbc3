"""A person's label map, ready to be rendered: compact codes, what each of them is, and where.

It is made once from a segmentation (FreeSurfer's, or any other), written beside the prepared cases and
memory-mapped, so that a training holds as many people as it likes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from segdistill.files import SegdistillError, atomic_path, read_json, write_json
from segdistill.runtime.plan import Plan
from segdistill.simulation.anatomy import Anatomy
from segdistill.simulation.mri import Head
from segdistill.simulation.rendering.tissues import AIR, UNKNOWN, Tissue, Tissues
from segdistill.sites.imports.labels import LabelMap as Codes
from segdistill.sites.imports.labels import codes_in
from segdistill.sites.protocol import read_protocol
from segdistill.volume import Volume

BORDER = 4  # voxels of air around the codes: what lies beyond the map is looked up there
_CENTRES = 2000  # remembered voxels per structure
DEPTH_MM = 0.25  # unit of ``depth``
_CLOSED_MM = 4.0  # sulci narrower than twice that count as brain when a skull is stripped
_FAR = 127  # depth that stands for all beyond
_VENTRICLES = read_protocol("brain_mri").code_of("ventricles")
_ARRAYS = ("codes", "depth", "push", "places")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """One person's label map. Axes are right, anterior, superior; voxels are cubes.

    Attributes:
        codes: (X, Y, Z) uint8 compact codes 0..C-1, 0 is air; a border of ``BORDER`` voxels is air.
        depth: (X, Y, Z) int8 distance from the brain's surface in quarters of a millimetre, negative
            inside, at most 127: what skull stripping goes by.
        push: (3, x, y, z) float32 mm on nodes ``push_step`` voxels apart: how a point looks further out
            when the logarithm of the ventricles' size grows by one; no nodes where none are known.
        places: (N, 4) int16 remembered voxels: the structure's code, and its place (x, y, z).
        voxel_mm: edge of a voxel, mm.
        push_step: distance of the nodes of ``push``, voxels.
        structure: the task's label code of every compact code; 0 for background.
        tissue: of every compact code, an index into ``tissues``. Codes of one tissue (its left and right
            part) get nearly the same brightness.
        tissues: see :class:`~segdistill.simulation.rendering.tissues.Tissue`.
        counts: voxels of every compact code.
        centre: (x, y, z) of the brain, or of all that isn't air, voxels.
        content: first and one past the last voxel of all that isn't air, per axis.
        brain: the same of what skull stripping keeps; of all where nothing is brain.
    """

    codes: Tensor
    depth: Tensor
    push: Tensor
    places: Tensor
    voxel_mm: float
    push_step: float
    structure: tuple[int, ...]
    tissue: tuple[int, ...]
    tissues: tuple[Tissue, ...]
    counts: tuple[int, ...]
    centre: tuple[float, float, float]
    content: tuple[tuple[int, int], ...]
    brain: tuple[tuple[int, int], ...]

    def channels(self, plan: Plan) -> tuple[int, ...]:
        """The plan's channel of every compact code; 0 where the plan doesn't have the structure."""
        channel = {code: index for index, code in enumerate(plan.codes)}
        return tuple(channel.get(code, 0) for code in self.structure)

    def to(self, device: torch.device) -> "LabelMap":
        """The map with what is looked up per voxel on a device."""
        return replace(self, codes=self.codes.to(device), depth=self.depth.to(device))

    def write(self, stem: Path) -> None:
        """Write ``STEM.map.json`` and, beside it, one ``.npy`` for each array."""
        for name in _ARRAYS:
            with atomic_path(stem.with_name(f"{stem.name}.{name}.npy")) as partial:
                np.save(partial, getattr(self, name).numpy(), allow_pickle=False)
        facts = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        facts["tissues"] = [asdict(tissue) for tissue in self.tissues]
        write_json(
            stem.with_name(f"{stem.name}.map.json"), {k: v for k, v in facts.items() if k not in _ARRAYS}
        )

    @classmethod
    def read(cls, stem: Path) -> "LabelMap":
        """Read what :meth:`write` wrote; arrays are memory-mapped.

        Raises:
            SegdistillError: a file is missing or isn't what it should be.
        """
        path = stem.with_name(f"{stem.name}.map.json")
        facts = read_json(path)
        try:
            # "c": pages are the process's own once written to, which nobody does; torch wants it so.
            arrays: dict[str, Any] = {
                name: torch.from_numpy(
                    np.load(stem.with_name(f"{stem.name}.{name}.npy"), mmap_mode="c", allow_pickle=False)
                )
                for name in _ARRAYS
            }
            tissues = tuple(Tissue(**_tuples(entry)) for entry in facts.pop("tissues"))
            return cls(**arrays, tissues=tissues, **_tuples(facts))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SegdistillError(
                f"{path}: not a prepared label map ({error}). Run 'dvc repro prepare' again."
            ) from error


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples, two deep."""
    return {
        key: tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if isinstance(value, list)
        else value
        for key, value in facts.items()
    }


def make_label_map(
    labels: Volume, structures: Mapping[int, int], tissues: Tissues, *, seed: int = 0
) -> LabelMap:
    """Make a label map from a segmentation.

    Args:
        labels: integer codes on cubic voxels, axes in any order; e.g. FreeSurfer's.
        structures: source code to the task's label code (0: background), as
            ``sites.imports.labels.LabelMap.codes``. A code that isn't listed is background.
        tissues: what the codes look like. A code that isn't listed is a tissue of its own that gets any
            brightness at every draw, and is brain if it is a structure.
        seed: of the remembered places.

    Raises:
        SegdistillError: voxels aren't cubes, or codes are more than 256, or all is air.
    """
    sizes = labels.spacing_mm
    if max(sizes) - min(sizes) > 0.01 * max(sizes):
        raise SegdistillError(
            f"the label map has voxels of {sizes} mm. Resample it to cubes, with nearest neighbours."
        )
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
    compact = Codes(source, {}).apply(turned)
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
