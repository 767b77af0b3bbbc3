"""The plan, made from the training split, and the training cases as the networks see them."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from pydantic import Field

from segdistill.files import SegdistillError, atomic_folder, write_json
from segdistill.params import Count, Positive
from segdistill.runtime.plan import Foreground, Mode, Normalisation, Plan, Structure
from segdistill.runtime.preprocess import preprocess, preprocess_label
from segdistill.sites.draw import Render
from segdistill.sites.manifest import Case, Site
from segdistill.volume import Volume, check_volume, grid_difference, read_label_map, read_volume

#: Writes a label map, and the task's code of each of its codes, to files named after the stem.
WritePerson = Callable[[Volume, Mapping[int, int], Path], None]

_DRAWN = 3  # scans that are rendered of a label map for the HU statistics
_SAMPLES = 100_000  # labelled voxels per case for the HU statistics, some several times in a small case


@dataclass(frozen=True)
class PlanKnobs:
    """The ``plan`` part of params.yaml, see :class:`~segdistill.runtime.plan.Plan`.

    ``spacing_mm`` None: the median spacing of the training split, per axis of the plan's orientation.
    """

    modality: Literal["mri", "ct"]
    orientation: str
    spacing_mm: tuple[Positive, Positive, Positive] | None
    foreground: Foreground
    normalisation: Literal["zscore", "ct"]
    patch_size: tuple[Count, Count, Count]
    mode: Mode
    overlap: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Entry:
    """A case of the train or val split, with its files; ``label`` is None where there is none.

    ``image`` is None where scans are rendered from the label map, then in the site's ``source_codes``.
    """

    site: Site
    case: Case
    image: Path | None
    label: Path | None


def usable_cases(sites: Iterable[tuple[Path, Site]]) -> list[Entry]:
    """The cases that training may use, of all sites that aren't held out, in the sites' order.

    These are the labelled cases of train and val, and the unlabelled ones of train: students learn
    from those what their teacher makes of them.

    Raises:
        SegdistillError: train or val has no labelled case.
    """
    found = [
        Entry(
            site,
            case,
            folder / case.image if case.image else None,
            folder / case.label if case.label else None,
        )
        for folder, site in sites
        if not site.held_out
        for case in site.cases
        if case.split == "train" or (case.split == "val" and case.label is not None)
    ]
    for split in ("train", "val"):
        if not any(entry.case.split == split and entry.label for entry in found):
            raise SegdistillError(
                f"no site has a labelled case in split {split!r}. Check 'split' of the sites."
            )
    return found


def hold_out(sites: list[tuple[Path, Site]], names: Sequence[str]) -> list[tuple[Path, Site]]:
    """The sites, some of them kept out of training as if their manifests said so.

    Raises:
        SegdistillError: no site of such a name.
    """
    there = [site.site for _, site in sites]
    for name in names:
        if name not in there:
            raise SegdistillError(f"{name}: no such site; there are {', '.join(there)}.")
    return [
        (folder, replace(site, held_out=True) if site.site in names else site) for folder, site in sites
    ]


def make_plan(
    sites: list[tuple[Path, Site]],
    knobs: PlanKnobs,
    *,
    task: str,
    stem_stride: int,
    stages: int,
    render: Callable[[], Render],
) -> Plan:
    """Make the plan; only training cases are looked at.

    Args:
        sites: folder and manifest of every site.
        knobs: of ``params.yaml``.
        task: name of the task.
        stem_stride: stride of the networks' first level, voxels.
        stages: the networks' resolution levels.
        render: makes what draws scans of a label map, where HU statistics need it.

    Raises:
        SegdistillError: a knob makes no sense, sites follow different label
            protocols, or a training case can't be read.
    """
    protocols = sorted({site.label_protocol for _, site in sites})
    if len(protocols) > 1:
        raise SegdistillError(
            f"the sites follow different label protocols: {', '.join(protocols)}. Import them with one."
        )
    train = [entry for entry in usable_cases(sites) if entry.case.split == "train" and entry.label]
    spacing: Sequence[float] | None = knobs.spacing_mm
    if spacing is None:
        spacing = median_spacing((_read_grid(entry) for entry in train), knobs.orientation)
    if knobs.normalisation == "ct":
        pairs = (pair for entry in train for pair in _pairs(entry, render))
        normalisation = hu_statistics(pairs, sites[0][1].structures)
    else:
        normalisation = Normalisation(knobs.normalisation)
    return Plan.from_json(
        {
            "task": task,
            **asdict(knobs),
            "spacing_mm": spacing,
            "normalisation": vars(normalisation),
            "size_divisor": [stem_stride * 2 ** (stages - 1)] * 3,
            "structures": [
                vars(Structure(code, name)) for code, name in sorted(sites[0][1].structures.items())
            ],
            "label_protocol": protocols[0],
        },
        source="params.yaml: plan",
    )


def median_spacing(scans: Iterable[Volume], orientation: str) -> list[float]:
    """Median voxel size in mm over scans, per axis of ``orientation``, rounded to micrometres."""
    to = axcodes2ornt(tuple(orientation))
    sizes = []
    for scan in scans:
        order = ornt_transform(to, io_orientation(scan.affine))[:, 0].astype(int)
        sizes.append([scan.spacing_mm[axis] for axis in order])
    return [round(float(size), 3) for size in np.median(sizes, axis=0)]


def hu_statistics(
    pairs: Iterable[tuple[Volume, Volume]], structures: Mapping[int, str]
) -> Normalisation:
    """The fixed CT normalisation from the labelled voxels of (scan, label map) pairs.

    Clip to the 0.5 and 99.5 percentiles, then take mean and standard deviation (HU). As in nnU-Net
    (Isensee et al., Nature Methods 2021) every case gives the same number of voxels, and mean and
    deviation are of the voxels before the clip.

    Raises:
        SegdistillError: no labelled voxel at all.
    """
    values: list[NDArray[np.float64]] = []
    for scan, label in pairs:
        inside = scan.array[np.isin(label.array, list(structures))].astype(np.float64)
        if len(inside):
            values.append(inside[np.linspace(0, len(inside) - 1, _SAMPLES).round().astype(np.int64)])
    pool = np.concatenate(values) if values else np.empty(0)
    if not len(pool):
        raise SegdistillError(
            "no labelled voxel in the training split, so no CT normalisation. Check the labels."
        )
    low, high = np.percentile(pool, [0.5, 99.5])
    return Normalisation(
        "ct",
        clip_hu=(float(low), float(high)),
        mean_hu=float(pool.mean()),
        std_hu=float(max(pool.std(), 1e-3)),
    )


@dataclass(frozen=True)
class Prepared:
    """A case as the networks read it.

    Attributes:
        image: (1, X, Y, Z) float16, normalised, on the plan's grid.
        label: (X, Y, Z) uint8 channel indices, 0 background, or ignored; None where there is none.
    """

    image: NDArray[np.float16]
    label: NDArray[np.uint8] | None


def prepare_case(entry: Entry, plan: Plan) -> Prepared:
    """Preprocess one case. The result depends on its two files and the plan, and on nothing else.

    Raises:
        SegdistillError: the case can't be read, or its label map isn't on its scan's grid.
    """
    scan = _read_scan(entry)
    prepared = preprocess(scan, plan)
    label = None
    if entry.label:
        label = preprocess_label(_read_label(entry, scan), plan, prepared.geometry)
    return Prepared(prepared.array.astype(np.float16), label)


def index_row(entry: Entry, prepared: Prepared) -> dict[str, Any]:
    """What ``index.json`` says of a prepared case; ``shape`` is (X, Y, Z) voxels."""
    return {
        "case": entry.case.case,
        "site": entry.site.site,
        "subject": entry.case.subject,
        "split": entry.case.split,
        "labelled": prepared.label is not None,
        "shape": list(prepared.image.shape[1:]),
    }


def person_row(entry: Entry, labels: Volume) -> dict[str, Any]:
    """The same of a label map without a scan, which is ``rendered``; ``shape`` is the map's own."""
    return {
        "case": entry.case.case,
        "site": entry.site.site,
        "subject": entry.case.subject,
        "split": entry.case.split,
        "labelled": True,
        "rendered": True,
        "shape": list(labels.array.shape),
    }


def prepare(
    sites: list[tuple[Path, Site]],
    plan: Plan,
    out: Path,
    write_person: WritePerson,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Preprocess the cases that training may use into ``out``.

    Writes, whole or not at all, ``index.json`` (an :func:`index_row` per case), ``CASE.image.npy`` and,
    of labelled cases, ``CASE.label.npy``, see :class:`Prepared`; of label maps without a scan what
    ``write_person`` makes of them.

    Args:
        sites: folder and manifest of every site.
        plan: the family's plan.
        out: folder to write.
        write_person: writes a label map, from which scans are rendered while training.
        progress: called with (cases done, cases) after each.

    Returns:
        The index.

    Raises:
        SegdistillError: a case can't be read, a label map isn't on its scan's grid, or the disk is full.
    """
    cases = usable_cases(sites)
    index = []
    with atomic_folder(out) as folder:
        for number, entry in enumerate(cases, start=1):
            if entry.image:
                prepared = prepare_case(entry, plan)
                for part, array in (("image", prepared.image), ("label", prepared.label)):
                    if array is not None:
                        np.save(folder / f"{entry.case.case}.{part}.npy", array, allow_pickle=False)
                index.append(index_row(entry, prepared))
            else:
                labels = _read_grid(entry)
                write_person(labels, entry.site.source_codes, folder / entry.case.case)
                index.append(person_row(entry, labels))
            if progress:
                progress(number, len(cases))
        write_json(folder / "index.json", index)
    return index


def _read_scan(entry: Entry) -> Volume:
    assert entry.image is not None  # noqa: S101 - callers ask for scans only
    return check_volume(read_volume(entry.image), str(entry.image))


def _read_label(entry: Entry, scan: Volume) -> Volume:
    assert entry.label is not None  # noqa: S101 - callers ask for labelled cases only
    label = read_label_map(entry.label)
    if difference := grid_difference(scan, label):
        raise SegdistillError(
            f"{entry.label}: not on the grid of {entry.image}: {difference}. Import the site again."
        )
    return label


def _read_grid(entry: Entry) -> Volume:
    """The scan, or where there is none, the label map."""
    if entry.image:
        return read_volume(entry.image)
    assert entry.label is not None  # noqa: S101 - the manifest is checked
    return read_label_map(entry.label)


def _pairs(entry: Entry, render: Callable[[], Render]) -> Iterator[tuple[Volume, Volume]]:
    """A labelled case's scan and label map; of a label map without a scan, several drawn ones."""
    if entry.image:
        scan = _read_scan(entry)
        yield scan, _read_label(entry, scan)
        return
    draw = render()(_read_grid(entry), entry.site.source_codes)
    for number in range(_DRAWN):
        scan, labels = draw(np.random.default_rng([zlib.crc32(entry.case.case.encode()), number]))
        yield scan, Volume(labels, scan.affine)
