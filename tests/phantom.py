"""A small made-up head for fast tests: ten ellipsoids on a 48^3 grid of 4 mm voxels."""

from pathlib import Path

import numpy as np

from segdistill.simulation.anatomy import Anatomy, read_anatomy, write_anatomy

_MEANS = (0.0, 25.0, 22.0, 64.0, 87.0, 74.0, 70.0, 66.0, 79.0, 67.0, 85.0)

# code, centre and radii in units of half the grid
_ELLIPSOIDS = (
    (1, (0, 0, 0), (0.72, 0.80, 0.70)),
    (3, (0, 0, 0.02), (0.66, 0.74, 0.64)),
    (4, (0, 0, 0.05), (0.52, 0.60, 0.48)),
    (2, (0, 0.05, 0.15), (0.14, 0.34, 0.14)),
    (5, (0, -0.08, -0.06), (0.20, 0.14, 0.10)),
    (6, (0.28, 0.12, 0.0), (0.10, 0.20, 0.12)),
    (6, (-0.28, 0.12, 0.0), (0.10, 0.20, 0.12)),
    (7, (0.30, -0.12, -0.22), (0.10, 0.20, 0.09)),
    (7, (-0.30, -0.12, -0.22), (0.10, 0.20, 0.09)),
    (9, (0, -0.42, -0.42), (0.40, 0.26, 0.22)),
    (10, (0, -0.42, -0.42), (0.24, 0.14, 0.11)),
    (8, (0, -0.08, -0.44), (0.14, 0.13, 0.28)),
)


def phantom_anatomy(folder: Path, size: int = 48) -> Anatomy:
    """Write a phantom anatomy of ``size``^3 voxels, 192 mm wide, and read it back."""
    half = (size - 1) / 2
    grid = np.moveaxis((np.indices((size, size, size)) - half) / half, 0, -1)
    labels = np.zeros((size, size, size), np.uint8)
    for code, centre, radii in _ELLIPSOIDS:
        labels[(((grid - centre) / radii) ** 2).sum(-1) <= 1] = code
    image = np.take(_MEANS, labels) + 3.0 * np.sin(9.0 * grid[..., 0] * grid[..., 1])
    scalp = (grid**2).sum(-1) <= 0.9**2
    image[(labels == 0) & scalp] = 60.0
    image[~scalp] = 5.0
    spacing = 192.0 / size
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -half * spacing
    source = {"wheel": "none: a phantom for tests"}
    write_anatomy(folder, "brain_mri", np.clip(image, 0, None), labels, affine, source)
    return read_anatomy(folder)
