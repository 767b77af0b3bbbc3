"""Which files below a folder are DICOM."""

import os
import re
from pathlib import Path
from typing import NoReturn

from segdistill.volume.grid import VolumeError

_LOOKED_AT = 4096  # bytes; the class of what is stored in the file is named in its first few hundred
# What every UID that the DICOM standard itself gives out begins with (PS3.5, annex B).
_STANDARD_UID = b"1.2.840.10008."
# The first element of a file without a preamble: of group 0002 or 0008, in either byte order.
_FIRST_ELEMENT = re.compile(rb"[\x02\x08]\0.\0|\0[\x02\x08]\0.", re.DOTALL)


def dicom_files(folder: Path) -> list[Path]:
    """All files below a folder that are DICOM or may be, in a fixed order.

    Raises:
        VolumeError: something below the folder can't be looked into.
    """

    def stop(error: OSError) -> NoReturn:
        raise VolumeError(
            f"{error.filename}: can't be read ({error.strerror}). Slices may be in it."
        ) from error

    found = []
    for here, folders, names in os.walk(folder, onerror=stop):
        for path in (Path(here, name) for name in (*folders, *names)):
            if path.is_symlink() and not path.is_file():
                raise VolumeError(
                    f"{path}: a link to a folder, or to nothing. Slices may be behind it; put the files "
                    "themselves there, or remove it."
                )
        found += [path for name in names if (path := Path(here, name)).is_file() and _may_be_dicom(path)]
    return sorted(found)


def _may_be_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with or without its preamble, or has been lost in a copy.

    A slice whose start is damaged must not be taken for a note and left out, so one sign is enough: the
    mark, a UID of the standard among bytes that aren't text (each DICOM file has one near its start),
    or a first element. An interrupted copy leaves a file that is empty, or zeros.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(_LOOKED_AT)
    except OSError as error:
        raise VolumeError(
            f"{path}: can't be read ({error.strerror}). It may be a slice: allow reading it, or remove "
            "it."
        ) from error
    return (
        start[128:132] == b"DICM"
        or (_STANDARD_UID in start and b"\0" in start)
        or _FIRST_ELEMENT.match(start) is not None
        or not start.strip(b"\0")
    )
