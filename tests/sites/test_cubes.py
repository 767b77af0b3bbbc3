"""Label maps of thick slices become cubes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdistill.sites.imports.cubes import are_cubes, to_cubes
from segdistill.volume import Volume


def cone(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Volume:
    """A cone of code 7 in a box of code 900, with a rod of code 3 in it, in the middle of the grid."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = 5.0 - (np.array(shape) - 1) / 2 * spacing_mm
    x, y, z = np.moveaxis(
        np.moveaxis(np.indices(shape), 0, -1) * spacing_mm + affine[:3, 3] - 5.0, -1, 0
    )
    codes = np.full(shape, 900, np.int32)
    codes[np.hypot(x, y) <= 20.0 - 0.6 * z] = 7
    codes[np.hypot(x - 3.0, y) <= 5.0] = 3
    return Volume(codes, affine)


def _agree(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_become_cubes_without_steps(axis: int) -> None:
    """A cone cut into slices of 8 mm comes back nearly as it is on fine voxels, and not in steps."""
    thick, fine = cone((40, 40, 8), (2.0, 2.0, 8.0)), cone((40, 40, 32), (2.0, 2.0, 2.0))
    order = np.roll([0, 1, 2], axis)
    turned = Volume(thick.array.transpose(order), thick.affine[:, [*order, 3]])
    made = to_cubes(turned)
    assert made.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    back = made.array.transpose(np.argsort(order))
    assert back.shape == fine.array.shape
    steps = thick.array.repeat(4, axis=2)
    known = slice(2, -2)  # beyond the first and the last slice's middle all goes on as it is there
    for code in (3, 7, 900):
        assert _agree(back[..., known] == code, fine.array[..., known] == code) > 0.97
    wrong = [(codes != fine.array)[..., known].sum() for codes in (back, steps)]
    assert wrong[0] < 0.5 * wrong[1]
    places = made.affine @ [*(np.array(made.array.shape) - 1) / 2, 1.0]
    assert places[:3] == pytest.approx([5.0, 5.0, 5.0])


def test_cubes_are_left_alone() -> None:
    """A map of cubes is the same object: not one voxel of it changes."""
    labels = cone((12, 12, 12), (2.0, 2.0, 2.01))
    assert are_cubes(labels)
    assert to_cubes(labels) is labels


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.sampled_from([1.0, 1.5, 2.0, 7.0])] * 3),
    seed=st.integers(0, 1000),
)
def test_any_map_becomes_cubes_of_its_own_codes(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> None:
    """No code is made up, the extent stays within a voxel, and a map of one code stays one."""
    codes = np.random.default_rng(seed).integers(0, 4, shape) * 1000
    made = to_cubes(Volume(codes, np.diag([*spacing, 1.0])))
    assert are_cubes(made)
    assert set(np.unique(made.array)) <= set(np.unique(codes))
    assert made.array.dtype == codes.dtype
    for size, before, after in zip(spacing, shape, made.array.shape, strict=True):
        assert abs(size * before - min(spacing) * after) <= min(spacing)
