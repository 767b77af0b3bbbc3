"""An anatomy: the one head or trunk that all subjects of a simulated cohort are made from.

Where it comes from is a module per task in ``anatomies``; here is what it is, and how it is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError, read_json, write_json
from segdistill.sites.protocol import read_protocol
from segdistill.volume import read_label_map, read_volume, write_volume


@dataclass(frozen=True)
class Anatomy:
    """One head or trunk with its structures.

    Attributes:
        image: (X, Y, Z) float64, axes right, anterior, superior: T1 intensities of a whole head in
            template units (white matter about 87), or HU of a trunk.
        labels: (X, Y, Z) uint8 structure codes, 0 where there is none, on the same grid.
        affine: (4, 4) float64, voxel to RAS mm.
        structures: code to name.
        label_protocol: name of the protocol that the labels follow.
        modality: which scanner the anatomy is made for: ``mri`` or ``ct``.
        origin: what it is, for the note of every site that is simulated from it.
        tissue_map: (X, Y, Z) uint8 codes of what a scanner tells apart, finer than the structures; None
            where the structures say it all.
        tissues: code in ``tissue_map`` to name.
    """

    image: NDArray[np.float64]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    structures: Mapping[int, str]
    label_protocol: str
    modality: str = "mri"
    origin: str = "one anatomy"
    tissue_map: NDArray[np.uint8] | None = None
    tissues: Mapping[int, str] = field(default_factory=dict)


def write_anatomy(
    folder: Path,
    task: str,
    image: NDArray[np.floating],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    source: Mapping[str, Any],
    *,
    modality: str = "mri",
    origin: str = "one anatomy",
    tissue_map: NDArray[np.uint8] | None = None,
    tissues: Mapping[int, str] | None = None,
) -> dict[str, int]:
    """Write an anatomy into ``folder``; arguments as in :class:`Anatomy`.

    Args:
        folder: gets ``image.nii``, ``labels.nii``, ``anatomy.json`` and, with tissues, ``tissues.nii``.
        task: whose label protocol the labels follow.
        image: see :class:`Anatomy`.
        labels: see :class:`Anatomy`.
        affine: see :class:`Anatomy`.
        source: which files it was made from, and their licences.
        modality: see :class:`Anatomy`.
        origin: see :class:`Anatomy`.
        tissue_map: see :class:`Anatomy`.
        tissues: see :class:`Anatomy`.

    Returns:
        Voxels per structure name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(folder / "image.nii", image.astype(np.float32), affine)
    write_volume(folder / "labels.nii", labels, affine)
    if tissue_map is not None:
        write_volume(folder / "tissues.nii", tissue_map, affine)
    protocol = read_protocol(task)
    counts = np.bincount(labels.ravel(), minlength=256)
    voxels = {name: int(counts[code]) for code, name in protocol.structures.items()}
    body = {
        "structures": {str(code): name for code, name in protocol.structures.items()},
        "label_protocol": protocol.name,
        "modality": modality,
        "origin": origin,
        "tissues": {str(code): name for code, name in (tissues or {}).items()},
        "voxels": voxels,
        "source": dict(source),
    }
    write_json(folder / "anatomy.json", body)
    return voxels


def read_anatomy(folder: Path) -> Anatomy:
    """Read what :func:`write_anatomy` wrote.

    Raises:
        SegdistillError: a file is missing or broken.
    """
    body = read_json(folder / "anatomy.json")
    image = read_volume(folder / "image.nii")
    labels = read_label_map(folder / "labels.nii")
    try:
        structures = {int(code): name for code, name in body["structures"].items()}
        tissues = {int(code): name for code, name in body["tissues"].items()}
        named = {key: body[key] for key in ("label_protocol", "modality", "origin")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SegdistillError(
            f"{folder / 'anatomy.json'}: not an anatomy ({error!r}). "
            "Remove its folder and run the stage anatomy (pipelines.anatomy) again."
        ) from error
    return Anatomy(
        image=image.array.astype(np.float64),
        labels=labels.array.astype(np.uint8),
        affine=image.affine,
        structures=structures,
        tissue_map=read_label_map(folder / "tissues.nii").array.astype(np.uint8) if tissues else None,
        tissues=tissues,
        **named,
    )
