"""Closed surfaces whose inside is known."""

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


def ellipsoid(
    radii: NDArray[np.float64], rings: int = 60
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Vertices (mm, about the origin) and outward triangles of an ellipsoid."""
    around = 2 * rings
    polar = np.linspace(0, np.pi, rings + 1)[1:-1]
    azimuth = np.arange(around) * 2 * np.pi / around
    ring = np.stack(
        [
            np.outer(np.sin(polar), np.cos(azimuth)),
            np.outer(np.sin(polar), np.sin(azimuth)),
            np.outer(np.cos(polar), np.ones(around)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    vertices = np.concatenate([[[0.0, 0.0, 1.0]], ring, [[0.0, 0.0, -1.0]]]) * radii
    last = len(vertices) - 1
    triangles = []
    for n in range(around):
        m = (n + 1) % around
        triangles.append((0, 1 + n, 1 + m))
        for row in range(rings - 2):
            a, b = 1 + row * around + n, 1 + row * around + m
            triangles += [(a, a + around, b + around), (a, b + around, b)]
        bottom = 1 + (rings - 2) * around
        triangles.append((last, bottom + m, bottom + n))
    return vertices, np.array(triangles, np.intp)


def gifti(vertices: NDArray[np.float64], triangles: NDArray[np.intp]) -> bytes:
    """A GIfTI surface file."""
    arrays = [
        nib.gifti.GiftiDataArray(vertices.astype(np.float32), "NIFTI_INTENT_POINTSET"),
        nib.gifti.GiftiDataArray(triangles.astype(np.int32), "NIFTI_INTENT_TRIANGLE"),
    ]
    body: bytes = nib.GiftiImage(darrays=arrays).to_bytes()
    return body
