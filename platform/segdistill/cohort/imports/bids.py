"""Scans in a BIDS dataset: sub-*/[ses-*/]anat/*_T1w.nii[.gz], label maps from its derivatives.

Names and their meaning: https://bids-specification.readthedocs.io (file names, derivatives: ``dseg``).
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill.cohort.imports.scan import Found, Problem, Scan
from segdistill.files import SegdistillError, read_json

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

    @property
    def identity(self) -> dict[str, str]:
        """The entities that say which scan this is."""
        return {key: value for key, value in self.entities.items() if key not in _MAKING}

    @property
    def in_own_space(self) -> bool:
        """Whether the file is on the scan's own grid, as far as its name says."""
        return self.entities.get("space", "T1w") in _OWN_SPACE


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
        roots += sorted(path for path in (folder / "derivatives").iterdir() if path.is_dir())
    labels = [
        (label, root)
        for root in roots
        for label in _names(root, "sub-*", "dseg")
        if label.in_own_space and desc in (None, label.entities.get("desc"))
    ]
    scans: list[Scan] = []
    problems: list[Problem] = []
    used: set[Path] = set()
    for subject in sorted(path for path in folder.glob("sub-*") if path.is_dir()):
        images = [image for image in _names(folder, subject.name, suffix) if image.in_own_space]
        if not images:
            problems.append(Problem(subject.name, f"has no anat/*_{suffix}.nii or .nii.gz"))
        for image in images:
            source = _source(folder, image.path)
            matching = [(label, root) for label, root in labels if _belongs(label, image)]
            used |= {label.path for label, _ in matching}
            shared = [other for label, _ in matching for other in images if _belongs(label, other)]
            if len(matching) > 1:
                named = ", ".join(str(label.path.relative_to(folder)) for label, _ in matching)
                what = f"{len(matching)} label maps ({named}); choose with --derivative or --desc"
                problems.append(Problem(source, what))
            elif len(shared) > 1:
                path = matching[0][0].path.relative_to(folder)
                what = f"label map {path} fits {len(shared)} scans"
                problems.append(Problem(source, f"{what}; name its run, or take one scan out"))
            else:
                label, root = matching[0] if matching else (None, None)
                names = _label_names(label, root) if label and root else None
                scans.append(
                    Scan(
                        source=source,
                        subject=subject.name,
                        image=image.path,
                        label=label.path if label else None,
                        names=names,
                        scanner=_scanner(image.path),
                    )
                )
    problems += [
        Problem(_source(folder, label.path), f"is a label map that fits no {suffix} scan")
        for label, _ in labels
        if label.path not in used
    ]
    return Found(tuple(scans), tuple(problems))


def _source(folder: Path, image: Path) -> str:
    name = str(image.relative_to(folder))
    return name.removesuffix(".gz").removesuffix(".nii")


def _names(root: Path, subject: str, suffix: str) -> list[BidsName]:
    found = [
        path
        for middle in ("anat", "ses-*/anat")
        for ending in (".nii", ".nii.gz")
        for path in root.glob(f"{subject}/{middle}/*_{suffix}{ending}")
    ]
    return [BidsName.of(path) for path in sorted(found)]


def _belongs(label: BidsName, image: BidsName) -> bool:
    """Whether all that ``label`` says of its scan is true of ``image``, subject and session included."""
    mine, its = image.identity, label.identity
    same_visit = all(mine.get(key) == its.get(key) for key in ("sub", "ses"))
    return same_visit and its.items() <= mine.items()


def _label_names(label: BidsName, root: Path) -> dict[int, str] | None:
    """Code to name from the nearest ``*dseg.tsv`` whose entities are all the label map's too."""
    for folder in _up(label.path.parent, root):
        tables = [BidsName.of(path) for path in sorted(folder.glob("*dseg.tsv"))]
        fitting = [
            table
            for table in tables
            if table.suffix == label.suffix and table.entities.items() <= label.entities.items()
        ]
        if fitting:
            return _read_table(max(fitting, key=lambda table: len(table.entities)).path)
    return None


def _up(folder: Path, root: Path) -> Iterator[Path]:
    yield folder
    while folder != root:
        folder = folder.parent
        yield folder


def _read_table(path: Path) -> dict[int, str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    try:
        return {int(row["index"]): row["name"] for row in rows}
    except (KeyError, ValueError, TypeError) as error:
        raise SegdistillError(f"{path}: expected tab-separated columns 'index' and 'name'.") from error


def _scanner(image: Path) -> dict[str, Any]:
    sidecar = image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    body = read_json(sidecar) if sidecar.is_file() else {}
    return {
        ours: body[theirs]
        for theirs, ours in _NUMBERS.items()
        if isinstance(body.get(theirs), int | float) and not isinstance(body[theirs], bool)
    }
