"""One scan and its label map, read and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segdistill.files import SegdistillError, unfetched
from segdistill.overlap import IGNORED
from segdistill.sites.imports.cubes import to_cubes
from segdistill.sites.imports.labels import CodeMap, codes_in
from segdistill.sites.imports.scan import Scan
from segdistill.texts import FETCH
from segdistill.volume import Volume, grid_difference, read_label_map, read_volume

INT16 = np.iinfo(np.int16)

_UNKNOWN = "unknown label code(s)"
_SAY = "say what they are with --labels"
_EMPTY = "the label map has no structure of the task, only background"
_NOTHING = {0, IGNORED}


@dataclass(frozen=True, eq=False)
class Checked:
    """What is fit to be written of a scan.

    Attributes:
        image: the scan, float32.
        labels: (X, Y, Z) uint8 in the task's codes, or ignored, on the scan's grid; or None.
    """

    image: Volume
    labels: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class CheckedMap:
    """A label map that scans can be rendered from.

    Attributes:
        labels: in the source's codes, on cubic voxels.
        meaning: the task's code of each of them, 0 for background, ``overlap.IGNORED`` for ignored.
    """

    labels: Volume
    meaning: dict[int, int]


def check_scan(scan: Scan, code_map: CodeMap) -> Checked | list[str]:
    """Read a scan and its label map; return them, or all that is wrong with them.

    Args:
        scan: where its files are.
        code_map: from its label codes to the task's.
    """
    wrong: list[str] = []
    image = _read(read_volume, scan.image, wrong) if scan.image else None
    source = _read(read_label_map, scan.label, wrong) if scan.label else None
    if image and source and (difference := grid_difference(image, source)):
        wrong.append(f"scan and label map are not on the same grid: {difference}")
    labels = None
    if source:
        unknown = code_map.unknown(source.array)
        if unknown:
            wrong.append(f"{_UNKNOWN} {', '.join(unknown)}; {_SAY}")
        else:
            labels = code_map.apply(source.array)
            if codes_in(labels) <= _NOTHING:
                wrong.append(_EMPTY)
    return wrong if wrong or image is None else Checked(image, labels)


def check_label_map(scan: Scan, code_map: CodeMap) -> CheckedMap | list[str]:
    """Read a label map that has no scan; return it in its own codes, or all that is wrong with it.

    Voxels that aren't cubes are brought to some, see :func:`to_cubes`.
    """
    wrong: list[str] = []
    source = _read(read_label_map, scan.label, wrong) if scan.label else None
    if source is None:
        return wrong
    codes = codes_in(source.array)
    if unknown := code_map.unknown(source.array):
        wrong.append(f"{_UNKNOWN} {', '.join(unknown)}; {_SAY}")
    elif {code_map.codes[code] for code in codes} <= _NOTHING:
        wrong.append(_EMPTY)
    if wrong:
        return wrong
    return CheckedMap(to_cubes(source), {code: code_map.codes[code] for code in sorted(codes)})


def compact(array: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """The same intensities as int16 where that loses nothing, which packs smaller, else as float32."""
    if array.min() < INT16.min or array.max() > INT16.max:
        return array
    rounded = array.astype(np.int16)
    return rounded if np.array_equal(rounded, array) else array


def _read(reader: Callable[[Path], Volume], path: Path, wrong: list[str]) -> Volume | None:
    if unfetched(path):
        wrong.append(f"{path.name} {FETCH}")
        return None
    try:
        return reader(path)
    except (SegdistillError, OSError) as error:
        wrong.append(str(error))
        return None
