"""Simulated sites: people made from one anatomy, scanned as the site scans.

Every subject has a random generator of its own, seeded by (seed, site, index), and all arithmetic is
float64, rounded to integers at the end, so a subject is the same bytes on every machine and whatever
else is made beside it. What kind of scanner it is (``mri``, ``ct``) the anatomy says.
"""

import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from segdistill.files import SegdistillError, atomic_folder
from segdistill.runtime.cpus import usable_cpus
from segdistill.simulation.anatomy import Anatomy
from segdistill.simulation.ct import CT
from segdistill.simulation.mri import MRI
from segdistill.simulation.people import Grid, Modality
from segdistill.sites.manifest import Case, Site, Split
from segdistill.volume import write_volume

MODALITIES: Mapping[str, Modality] = {"mri": MRI, "ct": CT}

NOTE = (
    "SIMULATED: subjects and scanner are made by a program from {origin}. Good for trying the platform, "
    "no evidence about real patients."
)


def modality_of(anatomy: Anatomy) -> Modality:
    """The scanner that an anatomy is made for.

    Raises:
        SegdistillError: there is none of its modality.
    """
    if anatomy.modality not in MODALITIES:
        raise SegdistillError(
            f"no scanner is simulated for modality {anatomy.modality!r}; known: {', '.join(MODALITIES)}."
        )
    return MODALITIES[anatomy.modality]


def simulate_site(
    anatomy: Anatomy,
    name: str,
    site: Any,
    cohort: Any,
    *,
    task: str,
    seed: int,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Site:
    """Simulate one site and write ``out/{manifest.json, images/CASE.nii, labels/CASE.nii}``.

    Args:
        anatomy: what all subjects are made from; its modality says which scanner they lie in.
        name: the site's name; cases are called ``NAME-001`` and so on.
        site: its people and scanner, the modality's ``SiteKnobs``.
        cohort: how people differ, the modality's ``CohortKnobs``.
        task: name of the task, for the manifest.
        seed: with the site's name and the subject's number it decides everything random.
        out: folder to write; it appears whole or not at all.
        progress: called with (subjects done, subjects) after each.

    Returns:
        The site as in its manifest.

    Raises:
        SegdistillError: no scanner of the anatomy's modality is known, or the disk is full.
    """
    kind = modality_of(anatomy)
    template = kind.template(anatomy)
    names: tuple[Split, ...] = get_args(Split)
    splits: list[Split] = [split for split, n in zip(names, site.split, strict=True) for _ in range(n)]

    def person(index: int, folder: Path) -> Case:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
        subject = kind.subject(template, cohort, rng)
        grid = kind.grid(template, subject, site, rng)
        image, labels = kind.scan(template, subject, grid, site, cohort, rng)
        case = f"{name}-{index:03d}"
        for part, array in (("images", image), ("labels", labels)):
            _write(folder / part / f"{case}.nii", array, grid, site.orientation)
        return Case(
            case=case,
            subject=case,
            image=f"images/{case}.nii",
            label=f"labels/{case}.nii",
            split=splits[index - 1],
            scanner={"simulated": True, "voxel_mm": list(site.voxel_mm)}
            | {"orientation": site.orientation, **site.facts()},
        )

    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        (folder / "labels").mkdir()
        cases = []
        with ThreadPoolExecutor(usable_cpus()) as pool:  # the heavy steps let go of the GIL
            waiting = [pool.submit(person, index, folder) for index in range(1, len(splits) + 1)]
            try:
                for done, future in enumerate(waiting, start=1):
                    cases.append(future.result())
                    if progress:
                        progress(done, len(splits))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        made = Site(
            site=name,
            task=task,
            simulated=True,
            held_out=site.held_out,
            label_protocol=anatomy.label_protocol,
            structures=dict(anatomy.structures),
            cases=tuple(cases),
            note=NOTE.format(origin=anatomy.origin),
        )
        made.write(folder)
    return made


def _write(path: Path, array: NDArray[Any], grid: Grid, orientation: str) -> None:
    """Write an array given on RAS axes with its axes stored in the site's own order."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    back = inv_ornt_aff(turn, array.shape)
    affine = np.einsum("ij,jk->ik", grid.affine, back)  # einsum: no BLAS
    write_volume(path, apply_orientation(array, turn), affine)
