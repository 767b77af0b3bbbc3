"""Real scans that no training sees: where they come from, and what of them can be compared.

Which scans a task has is data, ``unseen_scans/TASK.yaml`` beside this module. Their references rarely
follow the task's protocol, so each case says which union of our structures is compared with which union
of its reference codes.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError, atomic_folder, read_json, write_json
from segdistill.sites.pinned import Pinned, fetch_package, read_from_archive
from segdistill.sites.protocol import read_protocol
from segdistill.sites.surface import inside, read_gifti
from segdistill.texts import read_yaml_mapping
from segdistill.volume import (
    Volume,
    grid_difference,
    read_dicom_series,
    read_label_map,
    read_volume,
    reoriented,
    write_volume,
)

SOURCES = Path(__file__).parent / "unseen_scans"
INDEX = "unseen.json"
_AGAIN = "Run 'dvc repro unseen_data' again."


@dataclass(frozen=True)
class Group:
    """What is compared with what.

    Attributes:
        reference: codes of the reference label map; their union is the truth.
        predicted: names of our structures; their union is compared with it.
        averaged: whether the group is part of a case's mean.
        region: reference codes within which alone is compared; empty: everywhere.
    """

    reference: tuple[int, ...]
    predicted: tuple[str, ...]
    averaged: bool = True
    region: tuple[int, ...] = ()


@dataclass(frozen=True)
class UnseenCase:
    """A scan, its reference, and what of both can be compared.

    Attributes:
        case: its name.
        image: the scan's file, relative to the manifest's folder.
        reference: the reference label map's file, on the same grid.
        groups: name to group.
        note: where it is from, its licence, what the reference is and isn't.
    """

    case: str
    image: str
    reference: str
    groups: dict[str, Group]
    note: str


def read_unseen(folder: Path) -> tuple[UnseenCase, ...]:
    """Read ``folder/unseen.json``.

    Raises:
        SegdistillError: it is missing or no such manifest, or a group compares nothing.
    """
    path = folder / INDEX
    body = read_json(path)
    try:
        return tuple(
            UnseenCase(
                case=str(case["case"]),
                image=str(case["image"]),
                reference=str(case["reference"]),
                groups=_groups(case["groups"]),
                note=str(case["note"]),
            )
            for case in body["cases"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SegdistillError(f"{path}: not a list of unseen scans ({error!r}). {_AGAIN}") from error


def _groups(body: Mapping[str, Mapping[str, Any]]) -> dict[str, Group]:
    groups = {
        str(name): Group(
            reference=tuple(int(code) for code in group["reference"]),
            predicted=tuple(str(structure) for structure in group["predicted"]),
            averaged=bool(group.get("averaged", True)),
            region=tuple(int(code) for code in group.get("region", ())),
        )
        for name, group in body.items()
    }
    empty = [name for name, group in groups.items() if not (group.reference and group.predicted)]
    if empty or not any(group.averaged for group in groups.values()):
        raise ValueError(f"nothing to compare in {', '.join(empty) or 'any averaged group'}")
    return groups


def make_unseen(task: str, out: Path, sources: Path = SOURCES) -> tuple[UnseenCase, ...]:
    """Fetch the task's unseen scans and write scans, references and manifest to the folder ``out``.

    A task without ``sources/TASK.yaml`` gets a manifest without cases.

    Raises:
        SegdistillError: the package can't be had or isn't the pinned one, the source contradicts itself,
            or it names a structure that the task's protocol doesn't have.
    """
    source = sources / f"{task}.yaml"
    cases: list[UnseenCase] = []
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(out) as partial:
        if source.is_file():
            body = read_yaml_mapping(source)
            try:
                package = Pinned(**body["package"])
                entries = [(entry, _case(entry)) for entry in body["cases"]]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise SegdistillError(
                    f"{source}: not a source of unseen scans ({error!r}). Mend the file."
                ) from error
            _check_structures(source, task, [case for _, case in entries])
            archive = fetch_package(package, Path(scratch))
            for entry, case in entries:
                _write_case(partial, entry, case, archive)
                cases.append(case)
        write_json(partial / INDEX, {"task": task, "cases": [asdict(case) for case in cases]})
    return tuple(cases)


def _case(entry: Mapping[str, Any]) -> UnseenCase:
    name = str(entry["case"])
    if ("surfaces" in entry) == ("reference" in entry):
        raise ValueError(f"{name} needs either 'surfaces' or 'reference'")
    if ("image" in entry) == ("dicom" in entry):
        raise ValueError(f"{name} needs either 'image' or 'dicom'")
    return UnseenCase(
        case=name,
        image=f"{name}/image{_suffix(entry.get('image', '.nii.gz'))}",
        reference=f"{name}/reference{_suffix(entry.get('reference', '.nii.gz'))}",
        groups=_groups(entry["groups"]),
        note=str(entry["note"]),
    )


def _suffix(name: str) -> str:
    return ".nii.gz" if name.endswith(".nii.gz") else Path("x" + name).suffix


def _check_structures(source: Path, task: str, cases: Sequence[UnseenCase]) -> None:
    known = set(read_protocol(task).structures.values())
    named = {name for case in cases for group in case.groups.values() for name in group.predicted}
    if named - known:
        raise SegdistillError(
            f"{source}: {', '.join(sorted(named - known))}: no structure of {task}. Mend the file."
        )


def _write_case(out: Path, entry: Mapping[str, Any], case: UnseenCase, archive: Path) -> None:
    surfaces: dict[int, list[str]] = entry.get("surfaces", {})
    slices: list[str] = entry.get("dicom", [])
    names = [*slices, *(name for group in surfaces.values() for name in group)]
    names += [entry["image"]] if "image" in entry else []
    names += [entry["reference"]] if "reference" in entry else []
    members = read_from_archive(archive, names)
    image = out / case.image
    image.parent.mkdir(parents=True, exist_ok=True)
    if "reference" in entry:
        (out / case.reference).write_bytes(members[entry["reference"]])
    if slices:
        scan = _stacked([members[name] for name in slices])
        if "reference" in entry:  # its tool may have stored the axes in another order
            scan = reoriented(scan, read_label_map(out / case.reference).orientation)
        write_volume(image, np.rint(scan.array).astype(np.int16), scan.affine)
    else:
        image.write_bytes(members[entry["image"]])
    scan = read_volume(image)
    if surfaces:
        labels = label_surfaces(
            {code: [(name, members[name]) for name in group] for code, group in surfaces.items()}, scan
        )
        write_volume(out / case.reference, labels, scan.affine)
    reference = read_label_map(out / case.reference)
    if difference := grid_difference(scan, reference):
        raise SegdistillError(
            f"{archive}: the reference of {case.case} isn't on its scan's grid: {difference}."
        )


def _stacked(slices: Sequence[bytes]) -> Volume:
    """The scan of a DICOM series; whole numbers, as CT and MR store them, survive int16 unchanged."""
    with tempfile.TemporaryDirectory() as name:
        for number, body in enumerate(slices):
            (Path(name) / f"{number:05d}").write_bytes(body)
        return read_dicom_series(Path(name))


def label_surfaces(
    surfaces: Mapping[int, Sequence[tuple[str, bytes]]], scan: Volume
) -> NDArray[np.uint8]:
    """A label map on the scan's grid from closed surfaces in mm of the scan's affine.

    Args:
        surfaces: reference code to its GIfTI surfaces as (name, bytes).
        scan: whose grid is labelled.

    Returns:
        (X, Y, Z) uint8: the first code in whose surfaces a voxel's centre lies, 0 outside all.

    Raises:
        SegdistillError: not a surface, or one that isn't closed.
    """
    shape = (scan.array.shape[0], scan.array.shape[1], scan.array.shape[2])
    labels = np.zeros(shape, np.uint8)
    for code, files in surfaces.items():
        for name, body in files:
            vertices, triangles = read_gifti(body, name)
            labels[inside(vertices, triangles, scan.affine, shape, name) & (labels == 0)] = code
    return labels
