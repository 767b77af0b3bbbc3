"""Which voxels lie inside a closed surface: volumes, axes, and surfaces that aren't closed."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.files import SegdistillError
from segdistill.sites.surface import inside, read_gifti
from tests.surfaces import ellipsoid, gifti

RADII = np.array([21.0, 16.0, 12.0])
SIZE = (56, 48, 40)


def _affine(turn: list[int], flips: list[int], shift: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[turn] * np.array(flips)
    affine[:3, 3] = shift - affine[:3, :3] @ (np.array(SIZE) / 2)
    return affine


@given(
    st.permutations([0, 1, 2]),
    st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3),
    st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_an_ellipsoid_is_filled_on_any_grid(
    turn: list[int], flips: list[int], shift: tuple[float, float, float], inverted: bool
) -> None:
    """Whatever the axes, and whichever way its triangles face, exactly the centres inside are found."""
    affine = _affine(turn, flips, shift)
    radii = np.array([13.0, 16.0, 11.0])
    vertices, triangles = ellipsoid(radii)
    found = inside(vertices, triangles[:, ::-1] if inverted else triangles, affine, SIZE)
    centres = np.moveaxis(np.indices(SIZE), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    level = np.linalg.norm(centres / radii, axis=-1)
    assert found[level < 0.98].all()
    assert not found[level > 1].any()


def test_the_volume_is_the_ellipsoids() -> None:
    """The voxels inside make up the ellipsoid's volume to 1 %, also on a sheared, finer grid."""
    vertices, triangles = ellipsoid(RADII)
    affine = np.diag([0.8, 0.9, 1.1, 1.0])
    affine[0, 1], affine[:3, 3] = 0.15, (-30.0, -24.0, -20.0)
    found = inside(vertices, triangles, affine, (76, 54, 38))
    volume = found.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert volume == pytest.approx(4 / 3 * np.pi * RADII.prod(), rel=0.01)


def test_a_surface_through_voxel_centres_is_filled_without_streaks() -> None:
    """A cube whose faces, edges and vertices lie on voxel centres has its interior filled, no more."""
    corner = np.array(np.meshgrid([2, 8], [2, 8], [2, 8], indexing="ij"), float).reshape(3, -1).T
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    found = inside(corner, triangles, np.eye(4), (11, 11, 11))
    assert found[3:8, 3:8, 3:8].all()
    assert found[2:9, 2:9, 2:9].sum() == found.sum()


def test_a_surface_with_a_hole_is_refused() -> None:
    """A surface that isn't closed is named, not filled."""
    vertices, triangles = ellipsoid(RADII)
    affine = np.eye(4)
    affine[:3, 3] = -28
    with pytest.raises(SegdistillError, match=r"lh\.gii.*isn't closed"):
        inside(vertices, triangles[40:], affine, (56, 56, 56), "lh.gii")


def test_a_gifti_file_is_read_and_anything_else_is_refused() -> None:
    """Vertices and triangles survive the file; other bytes are named."""
    vertices, triangles = ellipsoid(RADII)
    again = read_gifti(gifti(vertices, triangles), "a.gii")
    assert np.allclose(again[0], vertices, atol=1e-5)
    assert np.array_equal(again[1], triangles)
    for body in (b"no surface", nib.GiftiImage().to_bytes()):
        with pytest.raises(SegdistillError, match=r"b\.gii"):
            read_gifti(body, "b.gii")
