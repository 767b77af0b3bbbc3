"""A small made-up trunk for fast tests: ellipsoids on 6 mm voxels, in a tiny source distribution."""

import gzip
import io
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from segdistill.simulation.anatomies.abdominal_ct import LABELS, SCAN, make_from
from segdistill.simulation.anatomy import Anatomy, read_anatomy

SHAPE, SPACING = (60, 50, 40), 6.0

# TotalSegmentator's code, HU, centre and radii in mm (right, anterior, superior) from the grid's middle
ORGANS = (
    (79, 5, (0, -70, 0), (10, 10, 130)),  # spinal cord
    (29, 220, (0, -45, 0), (20, 18, 130)),  # vertebrae
    (86, 20, (-38, -70, 0), (24, 18, 130)),  # back muscles
    (87, 20, (38, -70, 0), (24, 18, 130)),
    (5, 55, (65, 10, 60), (50, 50, 50)),
    (1, 45, (-85, -30, 60), (24, 30, 36)),
    (6, 40, (-50, 30, 50), (28, 28, 30)),
    (4, 10, (45, 52, 14), (14, 14, 16)),
    (2, 32, (62, -45, 0), (22, 22, 40)),
    (3, 32, (-62, -45, 0), (22, 22, 40)),
    (52, 42, (-14, -12, 0), (11, 11, 130)),
    (63, 42, (14, -12, 0), (12, 12, 130)),
    (18, 30, (0, 45, -20), (60, 26, 24)),
    (20, 35, (-70, 25, -20), (22, 26, 60)),
    (21, 8, (0, 20, -85), (34, 34, 26)),
)

# half width and half depth in mm, HU: skin, fat, muscle, the fat within
LAYERS = ((150, 115, 30), (144, 109, -100), (126, 91, 50), (118, 83, -105))


def scan_and_labels() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """(X, Y, Z) HU of a trunk on a table, and TotalSegmentator's codes on the same grid."""
    half = (np.array(SHAPE) - 1) / 2
    at = (np.moveaxis(np.indices(SHAPE), 0, -1) - half) * SPACING
    hu, labels = np.full(SHAPE, -1000.0), np.zeros(SHAPE, np.uint8)
    flat = at * [1, 1, 0]
    for width, depth, value in LAYERS:
        hu[((flat / [width, depth, 1]) ** 2).sum(-1) <= 1] = value
    hu[(np.abs(at[..., 1] + 130) < 4) & (np.abs(at[..., 0]) < 160)] = -100  # a table
    for code, value, centre, radii in ORGANS:
        inside = (((at - centre) / radii) ** 2).sum(-1) <= 1
        hu[inside], labels[inside] = value, code
    noise = 8 * np.random.default_rng(0).standard_normal(SHAPE)
    return np.rint(hu + noise).astype(np.int16), labels


def packed(array: NDArray[np.generic]) -> bytes:
    """The bytes of a ``.nii.gz`` with the array on an upright grid."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = [-180.0, -150.0, 50.0]
    return gzip.compress(nib.Nifti1Image(array, affine).to_bytes())


def write_sdist(path: Path) -> None:
    """A source distribution with nothing but the scan and its labels."""
    scan, labels = scan_and_labels()
    with tarfile.open(path, "w:gz") as tape:
        for name, body in ((SCAN, packed(scan)), (LABELS, packed(labels))):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tape.addfile(member, io.BytesIO(body))


def torso_anatomy(folder: Path) -> Anatomy:
    """Write the made-up trunk's anatomy and read it back."""
    scan, labels = scan_and_labels()
    folder.mkdir(parents=True, exist_ok=True)
    make_from(packed(scan), packed(labels), folder, folder)
    return read_anatomy(folder)
