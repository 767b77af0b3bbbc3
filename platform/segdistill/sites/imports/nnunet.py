"""Scans in nnU-Net's raw layout: dataset.json, imagesTr, labelsTr and, if there, imagesTs and labelsTs.

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md (version 2); the
``labels`` of version 1 (code to name) and its ``modality`` are read too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, visible
from segdistill.sites.imports.scan import Found, Problem, Scan, listed
from segdistill.sites.manifest import Split
from segdistill.texts import read_json_object, whole_number

CHANNEL = "_0000"


def find_nnunet(folder: Path) -> Found:
    """Find the scans of an nnU-Net raw dataset. ``imagesTs`` become test cases, labelled or not.

    Raises:
        SegdistillError: no usable dataset.json, several channels, or files that are not NIfTI.
    """
    path = folder / "dataset.json"
    body = read_json_object(path)
    if isinstance(body.get("dataset"), dict):
        raise SegdistillError(
            f"{path}: lists its files under 'dataset'. Bring them into imagesTr and labelsTr, and take "
            "that entry out."
        )
    ending = body.get("file_ending", ".nii.gz")
    if ending not in (".nii", ".nii.gz"):
        raise SegdistillError(f"{path}: file_ending {ending!r}; convert the scans to .nii.gz first.")
    channels = channel_names(body)
    if len(channels) != 1:
        raise SegdistillError(
            f"{path}: {len(channels)} channels ({', '.join(channels)}); "
            "a site holds one scan per case. Keep the _0000 files and one entry in channel_names."
        )
    names = label_names(path, body.get("labels"))
    found: list[Scan | Problem] = [*_half(folder, "Tr", ending, names, None)]
    training = sum(isinstance(entry, Scan) for entry in found)
    expected = body.get("numTraining")
    if expected is not None and not _says(expected, training):
        what = f"says numTraining {expected}, but imagesTr has {training} usable scan(s)"
        found.append(Problem("dataset.json", what))
    if (folder / "imagesTs").is_dir():
        found += _half(folder, "Ts", ending, names, "test")
    return Found(
        tuple(entry for entry in found if isinstance(entry, Scan)),
        tuple(entry for entry in found if isinstance(entry, Problem)),
    )


def _half(
    folder: Path, half: str, ending: str, names: dict[int, str], split: Split | None
) -> Iterator[Scan | Problem]:
    images, labels = folder / f"images{half}", folder / f"labels{half}"
    paired: set[Path] = set()
    for image in _files(images):
        stem = image.name.removesuffix(ending)
        case = stem.removesuffix(CHANNEL)
        if not image.name.endswith(ending):
            yield Problem(f"images{half}/{image.name}", f"does not end in {ending}, its file_ending")
        elif not stem.endswith(CHANNEL) or not case:
            yield Problem(
                f"images{half}/{image.name}",
                f"is not named CASE{CHANNEL}{ending}; scans of one channel are read",
            )
        else:
            label = labels / f"{case}{ending}"
            paired.add(label)
            yield Scan(case, case, image, label if listed(label) else None, names, split)
    for label in _files(labels):
        if label not in paired:
            yield Problem(f"labels{half}/{label.name}", f"has no scan in images{half}")


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in visible(folder.iterdir()) if not path.is_dir()]


def _says(value: Any, count: int) -> bool:
    try:
        return whole_number(value) == count
    except ValueError:
        return False


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """The names of the channels in dataset.json: an object, a list, or the name of the only one."""
    given = dataset.get("channel_names") or dataset.get("modality") or ""
    if isinstance(given, dict):
        given = list(given.values())
    return [str(name) for name in given] if isinstance(given, list) else [str(given)]


def label_names(path: Path, labels: Any) -> dict[int, str]:
    """Code to name, from dataset.json's name to code (version 2) or code to name (version 1).

    Codes may be written as text. A region of several codes names no single code and is left out; whether
    its codes are known is seen case by case.

    Raises:
        SegdistillError: no labels, an entry that isn't a code and a name, or one code with two names.
    """
    if not isinstance(labels, dict) or not labels:
        raise SegdistillError(f"{path}: no labels. Give 'labels': {{'background': 0, 'NAME': 1, ...}}.")
    names: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, list) and len(value) > 1:
            continue
        try:
            code, name = _code_and_name(key, value[0] if isinstance(value, list) and value else value)
        except ValueError as error:
            raise SegdistillError(f"{path}: labels: {key!r}: {value!r} is no code and name.") from error
        if names.setdefault(code, name) != name:
            raise SegdistillError(
                f"{path}: labels: code {code} has two names, {names[code]} and {name}."
            )
    return names


def _code_and_name(key: str, value: Any) -> tuple[int, str]:
    """Version 1 has the code first, as text and before a name; version 2 has it second."""
    first = _is_code(key)
    if isinstance(value, str) and first == _is_code(value):
        raise ValueError("two codes, or two names")
    return (whole_number(key), value) if first and isinstance(value, str) else (whole_number(value), key)


def _is_code(text: str) -> bool:
    try:
        whole_number(text)
    except ValueError:
        return False
    return True
