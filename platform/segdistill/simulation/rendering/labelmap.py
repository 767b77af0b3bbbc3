"""A person's label map, ready to be rendered: compact codes, what each of them is, and where.

It is made once from a segmentation (``making``), written beside the prepared cases and memory-mapped, so
that a training holds as many people as it likes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdistill.files import SegdistillError, atomic_path, read_json, write_json
from segdistill.overlap import IGNORED
from segdistill.runtime.plan import Plan

BORDER = 4  # voxels of air around the codes: what lies beyond the map is looked up there
DEPTH_MM = 0.25  # unit of ``depth``
_ARRAYS = ("codes", "depth", "push", "places")


AIR = "air"


@dataclass(frozen=True)
class Tissue:
    """What looks alike in a scan.

    Brightness is of white matter in MR, in HU in CT.

    Attributes:
        name: e.g. ``thalamus``.
        between: the two anchors that brightness is measured by.
        bright: from and to, 0 at the first anchor and 1 at the second.
        grain: standard deviation from voxel to voxel, from and to.
        patches: standard deviation of the slow variation, from and to.
        hu: what is added in CT, from and to.
        brain: whether skull stripping keeps it.
        arm: whether it is of an arm, which a scan may be without.
        grows: whether its size may be changed: it is the ventricles, or fat and skin.
        gas: of what a hollow organ holds: share of a loop's height that is gas, from and to; below 0:
            none. None: it is something else.
        loop: of the same: which loop it is in; those of one number are filled alike.
        height: of the same: how high it lies in its loop, 0 to 1.
    """

    name: str
    between: tuple[str, str]
    bright: tuple[float, float]
    grain: tuple[float, float]
    patches: tuple[float, float]
    hu: tuple[float, float] = (0.0, 0.0)
    brain: bool = False
    arm: bool = False
    grows: bool = False
    gas: tuple[float, float] | None = None
    loop: int = 0
    height: float = 0.0


@dataclass(frozen=True, eq=False)
class LabelMap:
    """One person's label map. Axes are right, anterior, superior; voxels are cubes.

    Attributes:
        codes: (X, Y, Z) uint8 compact codes 0..C-1, 0 is air; a border of ``BORDER`` voxels is air.
        depth: (X, Y, Z) int8 distance from the brain's surface in quarters of a millimetre, negative
            inside, at most 127: what skull stripping goes by; of a trunk (0, 0, 0).
        push: (3, x, y, z) float32 mm on nodes ``push_step`` voxels apart: how a point looks further out
            when the logarithm of what grows, the ventricles' size or the thickness of the fat, grows by
            one; no nodes where none are known.
        places: (N, 4) int16 remembered voxels: the structure's code, and its place (x, y, z).
        voxel_mm: edge of a voxel, mm.
        push_step: distance of the nodes of ``push``, voxels.
        structure: the task's label code of every compact code; 0 for background, 255 for ignored.
        tissue: of every compact code, an index into ``tissues``. Codes of one tissue (its left and right
            part) get nearly the same brightness.
        tissues: see :class:`~segdistill.simulation.rendering.tissues.Tissue`.
        counts: voxels of every compact code.
        centre: (x, y, z) of what is kept, voxels.
        content: first and one past the last voxel of all that isn't air, per axis.
        kept: the same of what is kept: the brain; where there is none, all but the arms.
        core: the same of what lies under the fat in a trunk; else of what is kept.
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
    kept: tuple[tuple[int, int], ...]
    core: tuple[tuple[int, int], ...]

    def channels(self, plan: Plan) -> tuple[int, ...]:
        """The plan's channel of every compact code; 0 where the plan doesn't have the structure.

        What is ignored stays so.
        """
        channel = {code: index for index, code in enumerate(plan.codes)} | {IGNORED: IGNORED}
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
