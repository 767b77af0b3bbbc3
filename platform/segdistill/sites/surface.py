"""Closed surfaces of triangles, and which voxels lie inside them."""

import io

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError

# Voxels. Rays pass this far beside the voxel centres, so that none meets a vertex or an edge exactly.
_BESIDE = (1.1e-7, 2.3e-7)


def read_gifti(body: bytes, source: str) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Vertices and triangles of a GIfTI surface.

    Args:
        body: the bytes of a ``.gii`` file.
        source: name for errors.

    Returns:
        (V, 3) vertices in mm, in the file's own space, and (T, 3) vertex numbers of the triangles.

    Raises:
        SegdistillError: not a GIfTI surface.
    """
    try:
        image = nib.GiftiImage.from_stream(io.BytesIO(body))
        points = image.agg_data("pointset")
        triangles = image.agg_data("triangle")
        vertices, faces = np.asarray(points, np.float64), np.asarray(triangles, np.intp)
    except Exception as error:  # nibabel lets errors of its XML parser and of any decoder through
        raise SegdistillError(f"{source}: not a GIfTI surface ({error!r}). Fetch it again.") from error
    if vertices.ndim != 2 or faces.ndim != 2 or vertices.shape[1] != 3 or faces.shape[1] != 3:
        raise SegdistillError(f"{source}: has no triangles. A surface file is needed.")
    return vertices, faces


def inside(
    vertices: NDArray[np.float64],
    triangles: NDArray[np.intp],
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    source: str = "surface",
) -> NDArray[np.bool_]:
    """Which voxel centres of a grid lie inside a closed surface, by their winding number.

    A ray runs along the last axis through every column of voxel centres. Each triangle that it crosses
    counts 1 or -1 by the way it faces; a centre is inside where the crossings above it don't cancel.
    So a surface may touch itself, and which way its triangles face as a whole makes no difference.

    Args:
        vertices: (V, 3) mm, in the space that ``affine`` maps to; parts outside the grid are fine.
        triangles: (T, 3) vertex numbers, all of them in the same sense of rotation.
        affine: (4, 4), voxel indices to mm; integer indices are voxel centres.
        shape: of the grid.
        source: name for errors.

    Returns:
        (X, Y, Z) bool.

    Raises:
        SegdistillError: the surface has holes or triangles that face against their neighbours.
    """
    to_voxels = np.linalg.inv(affine)
    points = vertices @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    points[:, :2] -= _BESIDE
    corners = points[triangles]  # (T, 3 corners, 3 axes)
    columns, triangle = _columns(corners[:, :, :2], shape)
    a, b, c = (corners[triangle, corner] for corner in range(3))
    # Twice the signed areas that the column cuts the projected triangle into.
    toward_a, toward_b, toward_c = (
        _area(columns, second, third) for second, third in ((b, c), (c, a), (a, b))
    )
    total = toward_a + toward_b + toward_c
    within = (np.sign(toward_a) == np.sign(toward_b)) & (np.sign(toward_b) == np.sign(toward_c))
    within &= total != 0
    columns, total = columns[within], total[within]
    weights = np.stack([toward_a, toward_b, toward_c], axis=1)[within] / total[:, None]
    height = np.einsum("nc,nc->n", weights, corners[triangle[within], :, 2])
    # Slot n counts the crossings in (n - 1, n]: they are above the centres below n, and no others.
    slot = np.clip(np.ceil(height), 0, shape[2]).astype(np.intp)
    crossings = np.zeros((shape[0], shape[1], shape[2] + 1), np.int16)
    np.add.at(crossings, (columns[:, 0], columns[:, 1], slot), np.sign(total).astype(np.int16))
    above = np.cumsum(crossings[:, :, ::-1], axis=2)[:, :, ::-1]
    if above[:, :, 0].any():
        raise SegdistillError(
            f"{source}: {np.count_nonzero(above[:, :, 0])} columns of voxels enter the surface "
            "without leaving it: it isn't closed, or triangles face the wrong way. Use a closed one."
        )
    winding: NDArray[np.bool_] = above[:, :, 1:] != 0
    return winding


def _columns(
    corners: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All (column, triangle) pairs where the column is in the triangle's bounding rectangle.

    Returns:
        (N, 2) column indices and (N,) triangle numbers.
    """
    limit = np.array(shape[:2]) - 1
    first = np.clip(np.ceil(corners.min(axis=1)), 0, None).astype(np.intp)
    last = np.minimum(np.floor(corners.max(axis=1)), limit).astype(np.intp)
    size = np.clip(last - first + 1, 0, None)
    count = size[:, 0] * size[:, 1]
    triangle = np.repeat(np.arange(len(corners)), count)
    number = np.arange(len(triangle)) - np.repeat(np.cumsum(count) - count, count)
    width = size[triangle, 1]
    offset = np.stack([number // width, number % width], axis=1)
    return first[triangle] + offset, triangle


def _area(
    columns: NDArray[np.intp], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Twice the signed area of the triangles (column, first, second), seen along the last axis."""
    one, two = first[:, :2] - columns, second[:, :2] - columns
    return one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]
