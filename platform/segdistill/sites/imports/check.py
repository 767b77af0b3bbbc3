"""One scan and its label map, read and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segdistill.files import SegdistillError, unfetched
from segdistill.sites.imports.labels import LabelMap
from segdistill.sites.imports.scan import Scan
from segdistill.texts import FETCH
from segdistill.volume import Volume, grid_difference, read_label_map, read_volume

INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, eq=False)
class Checked:
    """What is fit to be written of a scan.

    Attributes:
        image: the scan, float32.
        labels: (X, Y, Z) uint8 in the task's codes on the scan's grid, or None.
    """

    image: Volume
    labels: npt.NDArray[np.uint8] | None


def check_scan(scan: Scan, label_map: LabelMap) -> Checked | list[str]:
    """Read a scan and its label map; return them, or all that is wrong with them.

    Args:
        scan: where its files are.
        label_map: from its label codes to the task's.
    """
    wrong: list[str] = []
    image = _read(read_volume, scan.image, wrong)
    source = _read(read_label_map, scan.label, wrong) if scan.label else None
    if image and source and (difference := grid_difference(image, source)):
        wrong.append(f"scan and label map are not on the same grid: {difference}")
    labels = None
    if source:
        unknown = label_map.unknown(source.array)
        if unknown:
            wrong.append(f"unknown label code(s) {', '.join(unknown)}; say what they are with --labels")
        else:
            labels = label_map.apply(source.array)
            if not labels.any():
                wrong.append("the label map has no structure of the task, only background")
    return wrong if wrong or image is None else Checked(image, labels)


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
