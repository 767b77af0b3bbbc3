"""Which scans a user means by files and folders, what they are called, and what tells them apart."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segdistill.files import SegdistillError, sha256_of, visible
from segdistill.shown import shown
from segdistill.volume.dicom.files import dicom_files

ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh")


def find_scans(given: Sequence[Path]) -> list[Path]:
    """The scans that are meant by files and folders, each once: files, and folders of DICOM series.

    A file is a scan, whatever its name. Of a folder, these are scans, and nothing deeper:

    - its NIfTI and MGZ files, if it has any;
    - else the folder itself, if DICOM files lie right in it;
    - else its subfolders with DICOM files in or below them.

    Raises:
        SegdistillError: a folder has none of that.
        VolumeError: what may be DICOM can't be looked into.
    """
    found = [scan for path in given for scan in (_in_folder(path) if path.is_dir() else [path])]
    first: dict[Path, Path] = {}
    for scan in found:
        first.setdefault(scan.absolute(), scan)
    return list(first.values())


def _in_folder(folder: Path) -> list[Path]:
    files = [path for path in visible(folder.iterdir()) if path.name.endswith(ENDINGS)]
    if files:
        return files
    slices = [path.relative_to(folder) for path in dicom_files(folder)]
    if any(len(path.parts) == 1 for path in slices):
        return [folder]
    series = sorted({folder / path.parts[0] for path in slices})
    if not series:
        raise SegdistillError(
            f"{shown(folder)}: no scan in this folder. NIfTI or MGZ files ({', '.join(ENDINGS)}) are "
            "needed right in it, or DICOM series, each in a folder of its own."
        )
    return series


def names(scans: Sequence[Path]) -> list[str]:
    """A name for each scan, all different: the file's without its ending, or the DICOM folder's.

    Where some are alike (``a/orig.mgz``, ``b/orig.mgz``), as many of their folders as are needed come in
    front: ``a_orig``, ``b_orig``.

    Raises:
        SegdistillError: that doesn't tell them apart either.
    """
    parts = [(*scan.parts[:-1], stem(scan)) for scan in scans]
    depths = [1] * len(scans)
    while True:
        found = ["_".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        counts = Counter(found)
        alike = [place for place, name in enumerate(found) if counts[name] > 1]
        if not alike:
            return found
        if all(depths[place] >= len(parts[place]) for place in alike):
            twice = " and ".join(shown(scans[place]) for place in alike[:2])
            raise SegdistillError(f"{twice} have the same name. Rename one, or segment them one by one.")
        for place in alike:
            depths[place] += 1


def stem(scan: Path) -> str:
    """The name of a scan's file without its ending, or of its folder."""
    name = scan.name or scan.resolve().name  # of '.'
    ending = next((end for end in ENDINGS if name.endswith(end) and name != end), "")
    return name.removesuffix(ending)


def digest_of(scan: Path) -> str:
    """What tells a scan from any other: the SHA-256 of its bytes; of a DICOM series, over those of all.

    Raises:
        OSError: it can't be read.
        VolumeError: as :func:`find_scans`.
    """
    if not scan.is_dir():
        return sha256_of(scan)
    digests = sorted(sha256_of(path) for path in dicom_files(scan))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
