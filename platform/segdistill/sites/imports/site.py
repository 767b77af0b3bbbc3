"""A real site, from a source folder to ``data/sites/TASK/NAME``: all of it, or nothing."""

import csv
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segdistill.files import SegdistillError, atomic_folder
from segdistill.shown import command, shown
from segdistill.sites.draw import Render
from segdistill.sites.imports.check import Checked, CheckedMap, check_label_map, check_scan, compact
from segdistill.sites.imports.digest import digests_of_sites, voxel_digest
from segdistill.sites.imports.labels import LabelChoice, choose_labels, codes_in
from segdistill.sites.imports.layout import Layout, Pick, detect_layout, find_scans
from segdistill.sites.imports.privacy import patient_fields
from segdistill.sites.imports.scan import Found, ImportProblemsError, Problem, Scan, without
from segdistill.sites.imports.split import Fractions, assign_splits
from segdistill.sites.manifest import Case, Site, Split
from segdistill.sites.protocol import Protocol, read_protocol
from segdistill.texts import read_yaml_mapping
from segdistill.volume import write_volume

_RENDERED = "RENDERED: scans are made by a program from label maps of real people; no scanner made any."

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What to import, and how.

    Attributes:
        name: the new site's name; also the stem of its cases' pseudonyms.
        source: the folder with the data; it is only read.
        root: the project's folder; the site goes to ``root/data/sites/TASK/NAME``.
        task: whose label protocol the labels are brought to.
        layout: of the source; None: told from what lies there.
        pick: which files of the layout to take.
        labels: how label codes are mapped, see :func:`choose_labels`; None: ``freesurfer`` for a
            FreeSurfer folder and for label maps of a task with that map, else by the source's own names.
        fractions: shares of train, val and test, by subject.
        seed: of the split and of the order of the pseudonyms.
        held_out: keep the whole site out of training.
        require_labels: refuse scans without a label map.
        exclude: cases or subjects (by their names in the source) to leave out.
        subject: regular expression whose first group, searched in a case's source name, names its
            subject; None: as the layout says.
        key: where to write which pseudonym is whom, outside ``root``; None: nowhere.
        note: what a reader must know about this data.
        scans: rendered of every person of val and test, where the source has label maps alone.
    """

    name: str
    source: Path
    root: Path = Path()
    task: str = "brain_mri"
    layout: Layout | None = None
    pick: Pick = field(default_factory=Pick)
    labels: str | None = None
    fractions: Fractions = (0.7, 0.1, 0.2)
    seed: int = 0
    held_out: bool = False
    require_labels: bool = False
    exclude: tuple[str, ...] = ()
    subject: str | None = None
    key: Path | None = None
    note: str = ""
    scans: int = 4

    @property
    def folder(self) -> Path:
        """Where the site goes."""
        return self.root / "data" / "sites" / self.task / self.name


@dataclass(frozen=True)
class Added:
    """A site that was imported.

    Attributes:
        folder: where it is.
        site: its manifest.
        missing: structures of the task that no label map of the site has.
    """

    folder: Path
    site: Site
    missing: tuple[str, ...]


def add_site(
    request: Request,
    progress: Progress = lambda done, total: None,
    render: Render | None = None,
) -> Added:
    """Import a site: find, check, pseudonymise, split, write. Either all of it is there, or nothing.

    Args:
        request: what to import.
        progress: called with (scans done, scans in all) after each scan.
        render: draws the val and test scans of a source that has label maps alone.

    Raises:
        ImportProblemsError: what is wrong, case by case.
        SegdistillError: the request makes no sense, the site is there already, or the disk is full.
    """
    protocol = read_protocol(request.task)
    _check_request(request)
    layout = request.layout or detect_layout(request.source)
    default = None
    if layout == "freesurfer" or (layout == "labelmaps" and protocol.freesurfer):
        default = "freesurfer"
    choice = choose_labels(request.labels or default, protocol)
    found = _with_subjects(find_scans(request.source, layout, request.pick), request.subject)
    found = without(found, request.exclude)
    if not found.scans and not found.problems:
        raise SegdistillError(f"{request.source}: no scans found, read as {layout}. Is --from right?")
    problems = [*found.problems, *_repeated(found.scans)]
    if request.require_labels:
        problems += [Problem(scan.source, "has no label map") for scan in found.scans if not scan.label]
    with atomic_folder(request.folder) as partial:
        cases = _pseudonyms(found.scans, request)
        found_codes: dict[int, int] = {}
        if layout == "labelmaps":
            assert render is not None  # noqa: S101 - the command always has one
            found_codes = _write_people(partial, cases, choice, request, problems, render, progress)
            present = set(found_codes.values())
        else:
            present = _write_cases(partial, cases, choice, request, problems, progress)
        missing = tuple(name for code, name in protocol.structures.items() if code not in present)
        site = _manifest(request, protocol, layout, [case for _, case in cases], missing, found_codes)
        site.write(partial)
        if request.key:
            _write_key(request.key, cases)
    return Added(request.folder, site, missing)


def _check_request(request: Request) -> None:
    """Raise SegdistillError for what can be told to be wrong before any scan is read."""
    if not _NAME.fullmatch(request.name):
        raise SegdistillError(
            f"site name {request.name!r}: use 1 to 40 letters, digits, - and _, beginning with a letter."
        )
    tracked = request.folder.with_name(f"{request.name}.dvc")
    if request.folder.exists() or tracked.exists():
        steps = [command("dvc", "remove", tracked)] if tracked.exists() else []
        steps += [command("rm", "-r", request.folder)] if request.folder.exists() else []
        raise SegdistillError(
            f"{shown(request.folder)}: this site is there already. Choose another name, or remove it: "
            f"{' && '.join(steps)}"
        )
    for folder in (request.root, request.root / "tasks" / request.task):
        params = folder / "params.yaml"
        if not params.is_file():
            continue
        body = read_yaml_mapping(params)
        if body.get("task") == request.task and request.name in (body.get("sites") or {}):
            raise SegdistillError(
                f"{params}: {request.name} is a simulated site there. Choose another name."
            )
    if request.key:
        if request.key.resolve().is_relative_to(request.root.resolve()):
            raise SegdistillError(
                f"{request.key}: the key names patients; put it outside the project folder, "
                "where neither git nor DVC can take it along."
            )
        if request.key.exists():
            raise SegdistillError(f"{request.key}: the file is there already; give another name.")
        if not request.key.parent.is_dir():
            raise SegdistillError(f"{request.key}: no such folder {request.key.parent}. Make it first.")


def _with_subjects(found: Found, pattern: str | None) -> Found:
    """``found`` with subjects named by ``pattern``'s first group."""
    if pattern is None:
        return found
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SegdistillError(f"--subject {pattern}: not a regular expression ({error}).") from error
    if compiled.groups < 1:
        raise SegdistillError(f"--subject {pattern}: put the subject's part into parentheses.")
    scans: list[Scan] = []
    problems = list(found.problems)
    for scan in found.scans:
        match = compiled.search(scan.source)
        if match and match.group(1):
            scans.append(replace(scan, subject=match.group(1)))
        else:
            problems.append(Problem(scan.source, f"--subject {pattern} finds no subject in this name"))
    return Found(tuple(scans), tuple(problems))


def _repeated(scans: Sequence[Scan]) -> list[Problem]:
    """Scans that share a name or, through links, a file."""
    problems = []
    by_source: dict[str, Scan] = {}
    by_file: dict[Path, Scan] = {}
    for scan in scans:
        first = by_source.setdefault(scan.source, scan)
        if first is not scan:
            files = [entry.image or entry.label for entry in (first, scan)]
            problems.append(Problem(scan.source, f"is there twice: {files[0]} and {files[1]}"))
        # Not Path.resolve, which fails at links that lead in a circle.
        first = by_file.setdefault(Path(os.path.realpath(scan.image or scan.label or "")), scan)
        if first is not scan:
            problems.append(Problem(scan.source, f"is the same file as {first.source}"))
    return problems


def _pseudonyms(scans: Sequence[Scan], request: Request) -> list[tuple[Scan, Case]]:
    """Every scan with its case, named and numbered in a shuffled order of subjects."""
    splits: dict[str, Split] = assign_splits(scans, request.fractions, request.seed, request.held_out)
    subjects = sorted(splits)
    order = np.random.default_rng([request.seed, 1]).permutation(len(subjects)).tolist()
    number = {subjects[index]: place for place, index in enumerate(order, start=1)}
    ordered = sorted(scans, key=lambda scan: (number[scan.subject], scan.source))
    cases = []
    rendered = [scan for scan in ordered for _ in range(_times(scan, splits[scan.subject], request))]
    for place, scan in enumerate(rendered, start=1):
        name = f"{request.name}-{place:03d}"
        split = splits[scan.subject]
        case = Case(
            case=name,
            subject=f"{request.name}-s{number[scan.subject]:03d}",
            image=f"images/{name}.nii.gz" if scan.image or split != "train" else None,
            label=f"labels/{name}.nii.gz" if scan.label else None,
            split=split,
            scanner=scan.scanner,
        )
        cases.append((scan, case))
    return cases


def _times(scan: Scan, split: Split, request: Request) -> int:
    """How many cases a scan makes: a label map of val or test is rendered several times."""
    return 1 if scan.image or split == "train" else request.scans


def _write_cases(
    folder: Path,
    cases: list[tuple[Scan, Case]],
    choice: LabelChoice,
    request: Request,
    problems: list[Problem],
    progress: Progress,
) -> set[int]:
    """Check every case and write it; fill in ``cases``' scanner facts; return the codes that occur.

    Raises:
        ImportProblemsError: any of ``problems`` or of those met here.
    """
    present: set[int] = set()
    seen: dict[str, str] = {}
    shapes: set[tuple[int, ...]] = set()
    for index, (scan, case) in enumerate(cases):
        checked = check_scan(scan, choice.code_map(scan.names))
        if isinstance(checked, Checked):
            first = seen.setdefault(voxel_digest(checked.image), scan.source)
            if first != scan.source:
                problems.append(Problem(scan.source, f"has the same voxels as {first}"))
            shapes.add(tuple(sorted(checked.image.array.shape)))
            if checked.labels is not None:
                present |= codes_in(checked.labels)
            if not problems:
                _write_case(folder, case, checked)
            voxel_mm = [round(size, 4) for size in checked.image.spacing_mm]
            cases[index] = scan, replace(case, scanner={"voxel_mm": voxel_mm, **case.scanner})
        else:
            problems += [Problem(scan.source, what) for what in checked]
        progress(index + 1, len(cases))
    for digest, case_name in digests_of_sites(request.folder.parent, shapes):
        if digest in seen:
            problems.append(Problem(seen[digest], f"has the same voxels as case {case_name}"))
    if problems:
        raise ImportProblemsError(request.source, problems)
    return present


def _write_people(
    folder: Path,
    cases: list[tuple[Scan, Case]],
    choice: LabelChoice,
    request: Request,
    problems: list[Problem],
    render: Render,
    progress: Progress,
) -> dict[int, int]:
    """Check and write the label maps of train, and the scans that ``render`` draws of val and test.

    Returns:
        The codes that occur, each with the task's.

    Raises:
        ImportProblemsError: any of ``problems`` or of those met here.
    """
    meaning: dict[int, int] = {}
    seen: dict[str, str] = {}
    for index, (scan, own) in enumerate(_by_scan(cases)):
        checked = check_label_map(scan, choice.code_map(scan.names))
        if isinstance(checked, CheckedMap):
            meaning |= checked.meaning
            first = seen.setdefault(voxel_digest(checked.labels), scan.source)
            if first != scan.source:
                problems.append(Problem(scan.source, f"has the same voxels as {first}"))
            if not problems:
                for place in own:
                    cases[place] = scan, _write_person(folder, cases[place][1], checked, render, request)
        else:
            problems += [Problem(scan.source, what) for what in checked]
        progress(index + 1, len({id(scan) for scan, _ in cases}))
    if problems:
        raise ImportProblemsError(request.source, problems)
    return meaning


def _by_scan(cases: Sequence[tuple[Scan, Case]]) -> list[tuple[Scan, list[int]]]:
    """Every scan with the places of its cases, in their order."""
    found: dict[str, tuple[Scan, list[int]]] = {}
    for place, (scan, _) in enumerate(cases):
        found.setdefault(scan.source, (scan, []))[1].append(place)
    return list(found.values())


def _write_person(
    folder: Path, case: Case, checked: CheckedMap, render: Render, request: Request
) -> Case:
    """Write one case of a label map; return it with its scanner's facts."""
    assert case.label is not None  # noqa: S101 - it is all there is
    if case.image is None:
        _write(folder, {case.label: checked.labels.array}, checked.labels.affine)
        return case
    number = zlib.crc32(case.case.encode())
    image, labels = render(checked.labels, checked.meaning)(
        np.random.default_rng([request.seed, number])
    )
    _write(folder, {case.image: image.array, case.label: labels}, image.affine)
    voxel_mm = [round(size, 4) for size in image.spacing_mm]
    return replace(case, scanner={"simulated": True, "voxel_mm": voxel_mm})


def _write_case(folder: Path, case: Case, checked: Checked) -> None:
    assert case.image is not None  # noqa: S101 - it was checked
    files: dict[str, npt.NDArray[Any]] = {case.image: compact(checked.image.array)}
    if case.label and checked.labels is not None:
        files[case.label] = checked.labels
    _write(folder, files, checked.image.affine)


def _write(folder: Path, files: Mapping[str, npt.NDArray[Any]], affine: npt.NDArray[np.float64]) -> None:
    for name, array in files.items():
        write_volume(folder / name, array, affine)
        left = patient_fields(folder / name)
        if left:
            raise SegdistillError(f"{name}: header fields that may name a patient: {', '.join(left)}.")


def _manifest(
    request: Request,
    protocol: Protocol,
    layout: Layout,
    cases: list[Case],
    missing: tuple[str, ...],
    source_codes: dict[int, int],
) -> Site:
    real = f"Real scans, imported from a {layout} layout under pseudonyms."
    note = request.note or (_RENDERED if layout == "labelmaps" else real)
    if missing:
        note += f" No label map has: {', '.join(missing)}."
    return Site(
        site=request.name,
        task=request.task,
        simulated=layout == "labelmaps",
        held_out=request.held_out,
        label_protocol=protocol.name,
        structures=protocol.structures,
        cases=tuple(sorted(cases, key=lambda case: case.case)),
        note=note,
        source_codes=source_codes,
    )


def _write_key(path: Path, cases: Sequence[tuple[Scan, Case]]) -> None:
    """Write pseudonym, subject and source name of every case, readable by the owner alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["case", "subject", "source", "source_subject"])
            rows.writerows((case.case, case.subject, scan.source, scan.subject) for scan, case in cases)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
