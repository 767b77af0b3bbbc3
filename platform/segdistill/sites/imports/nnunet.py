"""Scans in nnU-Net's raw layout: dataset.json, imagesTr, labelsTr and, if there, imagesTs and labelsTs.

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md (version 2); the
``labels`` of version 1 (code to name) and its ``modality`` are read too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, read_json
from segdistill.sites.imports.scan import Found, Problem, Scan
from segdistill.sites.manifest import Split

CHANNEL = "_0000"


def find_nnunet(folder: Path) -> Found:
    """Find the scans of an nnU-Net raw dataset. ``imagesTs`` become test cases, labelled or not.

    Raises:
        SegdistillError: no usable dataset.json, several channels, or files that are not NIfTI.
    """
    path = folder / "dataset.json"
    body = read_json(path)
    if not isinstance(body, dict):
        raise SegdistillError(f"{path}: not an nnU-Net dataset.json (expected an object).")
    ending = body.get("file_ending", ".nii.gz")
    if ending not in (".nii", ".nii.gz"):
        raise SegdistillError(f"{path}: file_ending {ending!r}; convert the scans to .nii.gz first.")
    channels = body.get("channel_names") or body.get("modality") or {"0": ""}
    if len(channels) != 1:
        raise SegdistillError(
            f"{path}: {len(channels)} channels ({', '.join(map(str, channels.values()))}); "
            "a site holds one scan per case. Keep the _0000 files and one entry in channel_names."
        )
    names = _label_names(path, body.get("labels"))
    found: list[Scan | Problem] = [*_half(folder, "Tr", ending, names, None)]
    training = sum(isinstance(entry, Scan) for entry in found)
    expected = body.get("numTraining")
    if isinstance(expected, int) and expected != training:
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
            yield Problem(f"images{half}/{image.name}", f"is not named CASE{CHANNEL}{ending}")
        else:
            label = labels / f"{case}{ending}"
            paired.add(label)
            yield Scan(case, case, image, label if label.is_file() else None, names, split)
    for label in _files(labels):
        if label not in paired:
            yield Problem(f"labels{half}/{label.name}", f"has no scan in images{half}")


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _label_names(path: Path, labels: Any) -> dict[int, str]:
    """Code to name, from name to code (version 2) or code to name (version 1).

    Region entries (name to a list of codes) name no single code and are left out; whether their codes
    are known is seen case by case.
    """
    if not isinstance(labels, dict) or not labels:
        raise SegdistillError(f"{path}: no labels. Give 'labels': {{'background': 0, 'NAME': 1, ...}}.")
    names: dict[int, str] = {}
    for key, value in labels.items():
        code, name = (value, key) if isinstance(value, int) else (key, value)
        if isinstance(value, list):
            continue
        try:
            clash = names.setdefault(int(code), str(name)) != str(name)
        except ValueError as error:
            raise SegdistillError(f"{path}: labels: {key!r}: {value!r} is no code and name.") from error
        if clash:
            raise SegdistillError(f"{path}: labels: code {code} has two names.")
    return names
