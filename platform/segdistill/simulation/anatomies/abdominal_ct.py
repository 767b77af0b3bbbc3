"""Real anatomy of abdomen and pelvis from a pinned source distribution: TotalSegmentator's test scan.

One patient's CT at 3 mm without contrast, with the labels that TotalSegmentator's model gave it; nobody
drew them. The package is used as data only: fetched by version and hash, and never built or installed.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.simulation.anatomy import write_anatomy
from segdistill.sites.pinned import Pinned, fetch_package, read_from_archive
from segdistill.sites.protocol import read_protocol
from segdistill.volume import read_label_map, read_volume, same_grid

TASK = "abdominal_ct"  # its label protocol says which code means which structure
TOOL = "totalsegmentator"  # and how to read this tool's codes

PACKAGE = Pinned(
    "totalsegmentator==2.18.0",
    "totalsegmentator-2.18.0.tar.gz",
    "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
)
_FOLDER = "totalsegmentator-2.18.0/tests/reference_files"
SCAN = f"{_FOLDER}/example_ct.nii.gz"
LABELS = f"{_FOLDER}/example_seg_fast_force_split.nii.gz"

# TotalSegmentator's codes of what a CT scanner tells apart, finer and coarser than the structures.
TISSUES: dict[str, Sequence[int]] = {
    "spleen": (1,),
    "kidney": (2, 3),
    "gallbladder": (4,),
    "liver": (5,),
    "stomach": (6,),
    "pancreas": (7,),
    "adrenal_gland": (8, 9),
    "lung": range(10, 15),
    "small_bowel": (18, 19),  # with the duodenum
    "colon": (20,),
    "urinary_bladder": (21,),
    "prostate": (22,),
    "bone": (*range(25, 51), *range(69, 79), *range(91, 117)),
    "artery": (52, 65, 66),  # aorta and iliac arteries
    "vena_cava": (63,),
    "portal_vein": (64,),
    "iliac_vein": (67, 68),
    "spinal_cord": (79,),
    "muscle": range(80, 90),
    "cartilage": (117,),
}


def make(out: Path) -> dict[str, int]:
    """Fetch the source distribution and write the anatomy into the folder ``out``.

    Returns:
        Voxels (27 mm^3) per structure name.

    Raises:
        SegdistillError: the package can't be had or isn't the pinned one, or the disk is full.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        members = read_from_archive(fetch_package(PACKAGE, scratch), (SCAN, LABELS))
        return make_from(members[SCAN], members[LABELS], scratch, out)


def make_from(scan: bytes, segmentation: bytes, scratch: Path, out: Path) -> dict[str, int]:
    """Write the anatomy from the bytes of a CT and of TotalSegmentator's label map, both ``.nii.gz``.

    Raises:
        SegdistillError: not on one grid, not on axes right, anterior, superior with cubic voxels, or a
            label without a meaning in the task.
    """
    (scratch / "scan.nii.gz").write_bytes(scan)
    (scratch / "labels.nii.gz").write_bytes(segmentation)
    image, found = read_volume(scratch / "scan.nii.gz"), read_label_map(scratch / "labels.nii.gz")
    if not same_grid(image, found) or not np.allclose(
        image.affine[:3, :3], np.eye(3) * image.affine[0, 0]
    ):
        raise SegdistillError(f"{SCAN} and {LABELS}: not on one upright grid. Use the pinned package.")
    return write_anatomy(
        out,
        TASK,
        image.array,
        map_labels(found.array),
        image.affine,
        source={
            "package": PACKAGE.file,
            "sha256": PACKAGE.sha256,
            "scan": SCAN,
            "labels": LABELS,
            "licence": "Apache-2.0 (TotalSegmentator); labels made by its model, checked by nobody",
        },
        modality="ct",
        origin="one patient's CT (TotalSegmentator's example, with labels that its model made)",
        tissue_map=map_tissues(found.array),
        tissues=dict(enumerate(TISSUES, start=1)),
    )


def map_labels(found: NDArray[np.integer]) -> NDArray[np.uint8]:
    """TotalSegmentator's codes (X, Y, Z) in the codes of the task's protocol.

    Raises:
        SegdistillError: a code that the protocol's map doesn't name.
    """
    codes = read_protocol(TASK).maps[TOOL]
    unknown = sorted({int(code) for code in np.unique(found)} - codes.keys())
    if unknown:
        raise SegdistillError(f"{LABELS}: no structure for label {unknown}. Use the pinned package.")
    table = np.zeros(max(codes) + 1, np.uint8)
    table[list(codes)] = list(codes.values())
    return np.asarray(table[found])


def map_tissues(found: NDArray[np.integer]) -> NDArray[np.uint8]:
    """TotalSegmentator's codes (X, Y, Z) as tissues, numbered from 1 in their order; 0 for others."""
    table = np.zeros(256, np.uint8)
    for number, codes in enumerate(TISSUES.values(), start=1):
        table[list(codes)] = number
    return np.asarray(table[found])
