"""Scans in a BIDS dataset: sub-*/[ses-*/]anat/*_T1w.nii[.gz], label maps from its derivatives.

Names and their meaning: https://bids-specification.readthedocs.io (file names, derivatives: ``dseg``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, unfetched, visible
from segdistill.sites.imports.scan import Found, Problem, Scan, listed
from segdistill.texts import FETCH, read_json_object, read_table, whole_number

# Entities that say how a label map was made, not which scan it belongs to.
_MAKING = {"desc", "seg", "atlas", "label", "res", "den", "space"}
# Values of 'space' that mean the scan's own space.
_OWN_SPACE = {"T1w", "T2w", "orig", "individual", "native", "subject"}
# Sidecar fields that say how the scan was acquired, and nothing about whom, where or when.
_NUMBERS = {
    "MagneticFieldStrength": "field_strength_t",
    "RepetitionTime": "repetition_time_s",
    "EchoTime": "echo_time_s",
    "InversionTime": "inversion_time_s",
    "FlipAngle": "flip_angle_deg",
}


@dataclass(frozen=True)
class BidsName:
    """A BIDS file name taken apart: ``sub-01_ses-2_desc-aseg_dseg.nii.gz``.

    Attributes:
        path: the file.
        entities: e.g. ``{"sub": "01", "ses": "2", "desc": "aseg"}``.
        suffix: e.g. ``dseg``.
    """

    path: Path
    entities: dict[str, str]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> "BidsName":
        """Take ``path``'s name apart; parts without a hyphen before the suffix are ignored."""
        *pairs, suffix = path.name.split(".")[0].split("_")
        return cls(path, dict(pair.split("-", 1) for pair in pairs if "-" in pair), suffix)

    def strays(self, root: Path) -> str | None:
        """How the name contradicts the folders that the file lies in, below ``root``; None if not."""
        folders = self.path.relative_to(root).parts[:-2]  # without anat and the name
        named = [f"{key}-{self.entities[key]}" for key in ("sub", "ses") if key in self.entities]
        if list(folders) == named:
            return None
        return f"lies in {'/'.join(folders)} and its name says {' '.join(named) or 'nothing'}; mend one"

    @property
    def identity(self) -> dict[str, str]:
        """The entities that say which scan this is."""
        return {key: value for key, value in self.entities.items() if key not in _MAKING}

    @property
    def in_own_space(self) -> bool:
        """Whether the file is on the scan's own grid, as far as its name says."""
        return self.entities.get("space", "T1w") in _OWN_SPACE


@dataclass(frozen=True)
class _Label:
    """A label map and the dataset (or derivative) that it lies in."""

    name: BidsName
    root: Path

    def fits(self, image: BidsName) -> bool:
        """Whether all that the name says of the scan is true of ``image``, session included."""
        mine, its = self.name.identity, image.identity
        same_visit = all(mine.get(key) == its.get(key) for key in ("sub", "ses"))
        return same_visit and mine.items() <= its.items()


def find_bids(
    folder: Path, suffix: str = "T1w", derivative: str | None = None, desc: str | None = None
) -> Found:
    """Find the scans of a BIDS dataset (or of one derivative dataset, which is laid out the same).

    A label map belongs to a scan if all that its name says (subject, session, run, ...) is true of the
    scan. Its codes are named by the nearest ``dseg.tsv`` that applies to it.

    Args:
        folder: the dataset.
        suffix: of the scans, e.g. ``T1w``.
        derivative: the folder under ``derivatives`` to take label maps from; None: all.
        desc: the ``desc`` entity of the label maps to take, e.g. ``aparcaseg``; None: any.

    Raises:
        SegdistillError: no such derivative.
    """
    roots = [folder]
    if derivative is not None:
        roots = [folder / "derivatives" / derivative]
        if not roots[0].is_dir():
            raise SegdistillError(f"{roots[0]}: no such folder for --derivative.")
    elif (folder / "derivatives").is_dir():
        roots += _folders(folder / "derivatives")
    found: list[Scan | Problem] = []
    labels: dict[str, list[_Label]] = {}
    for root in roots:
        for subject in subject_folders(root):
            for name in _names(subject, "dseg"):
                stray = name.strays(root)
                if not name.in_own_space or desc not in (None, name.entities.get("desc")):
                    continue
                if stray:
                    found.append(Problem(_source(folder, name.path), stray))
                else:
                    labels.setdefault(subject.name, []).append(_Label(name, root))
    fitting: set[Path] = set()
    for subject in subject_folders(folder):
        images = [image for image in _names(subject, suffix) if image.in_own_space]
        if not images:
            found.append(Problem(subject.name, f"has no anat/*_{suffix}.nii or .nii.gz"))
        for image in images:
            own = [label for label in labels.get(subject.name, []) if label.fits(image)]
            fitting |= {label.name.path for label in own}
            stray = image.strays(folder)
            if stray:
                found.append(Problem(_source(folder, image.path), stray))
            else:
                found.append(_pair(folder, subject.name, image, own, images))
    found += [
        Problem(_source(folder, label.name.path), f"is a label map that fits no {suffix} scan")
        for label in chain.from_iterable(labels.values())
        if label.name.path not in fitting
    ]
    return Found(
        tuple(entry for entry in found if isinstance(entry, Scan)),
        tuple(entry for entry in found if isinstance(entry, Problem)),
    )


def _pair(
    folder: Path, subject: str, image: BidsName, labels: list[_Label], images: list[BidsName]
) -> Scan | Problem:
    """The scan ``image`` with its label map, or why ``labels``, which all fit it, leave that open.

    ``images`` are all scans of the subject.
    """
    source = _source(folder, image.path)
    paths = [str(label.name.path.relative_to(folder)) for label in labels]
    if len(labels) > 1:
        what = f"{len(labels)} label maps ({', '.join(paths)}); choose with --derivative or --desc"
        return Problem(source, what)
    try:
        scanner = _scanner(image.path)
    except SegdistillError as error:
        return Problem(source, str(error))
    if not labels:
        return Scan(source, subject, image.path, None, scanner=scanner)
    (label,) = labels
    shared = sum(label.fits(other) for other in images)
    if shared > 1:
        what = f"label map {paths[0]} fits {shared} scans; name its run, or take one scan out"
        return Problem(source, what)
    return Scan(source, subject, image.path, label.name.path, _label_names(label), scanner=scanner)


def _source(folder: Path, image: Path) -> str:
    name = str(image.relative_to(folder))
    return name.removesuffix(".gz").removesuffix(".nii")


def subject_folders(root: Path) -> list[Path]:
    """The folders ``sub-*`` of a dataset.

    Raises:
        SegdistillError: one is a link to a folder that isn't here.
    """
    return _folders(root, "sub-")


def anatomy_folders(subject: Path) -> list[Path]:
    """The folders ``anat`` of a subject, those of its sessions among them.

    Raises:
        SegdistillError: one is a link to a folder that isn't here.
    """
    places = (subject, *_folders(subject, "ses-"))
    return [path for place in places for path in _folders(place, "anat") if path.name == "anat"]


def _folders(folder: Path, prefix: str = "") -> list[Path]:
    entries = [path for path in visible(folder.iterdir()) if path.name.startswith(prefix)]
    for path in entries:
        if unfetched(path) and not path.suffix:  # what has a suffix is a file, and not looked for here
            raise SegdistillError(f"{path} {FETCH}.")
    return [path for path in entries if path.is_dir()]


def _names(subject: Path, suffix: str) -> list[BidsName]:
    found = [path for folder in anatomy_folders(subject) for path in visible(folder.iterdir())]
    endings = tuple(f"_{suffix}{ending}" for ending in (".nii", ".nii.gz"))
    return [BidsName.of(path) for path in found if path.name.endswith(endings)]


def _label_names(label: _Label) -> dict[int, str] | None:
    """Code to name from the nearest ``*dseg.tsv`` whose entities are all the label map's too."""
    for folder in _up(label.name.path.parent, label.root):
        tables = [
            BidsName.of(path) for path in visible(folder.iterdir()) if path.name.endswith("dseg.tsv")
        ]
        fitting = [
            table
            for table in tables
            if table.suffix == label.name.suffix
            and table.entities.items() <= label.name.entities.items()
        ]
        if fitting:
            closest = max(len(table.entities) for table in fitting)
            first, *others = [table.path for table in fitting if len(table.entities) == closest]
            if others:
                raise SegdistillError(
                    f"{label.name.path}: {first.name} and {others[0].name} both name its codes. "
                    "Keep one of them."
                )
            return _read_names(first)
    return None


def _up(folder: Path, root: Path) -> Iterator[Path]:
    yield folder
    while folder != root:
        folder = folder.parent
        yield folder


def _read_names(path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, name in read_table(path, ("index", "name")):
        try:
            code = whole_number(index)
        except ValueError as error:
            raise SegdistillError(f"{path}: index {error}. Mend the file.") from error
        if names.setdefault(code, name) != name:
            raise SegdistillError(f"{path}: index {code} has two names, {names[code]} and {name}.")
    return names


def _scanner(image: Path) -> dict[str, Any]:
    sidecar = image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    body = read_json_object(sidecar) if listed(sidecar) else {}
    return {
        ours: body[theirs]
        for theirs, ours in _NUMBERS.items()
        if isinstance(body.get(theirs), int | float) and not isinstance(body[theirs], bool)
    }
