"""Resampling by nnU-Net's convention, against the functions that nnU-Net calls."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.runtime.nnunet import filled, grid_size, resample_scan, thick_axis, weights_between
from segdistill.runtime.plan import Normalisation, Plan
from segdistill.runtime.preprocess import normalise, preprocess
from segdistill.runtime.windows import pad
from segdistill.volume import Volume
from tests.onnx_models import make_plan

SIZES = st.tuples(*[st.integers(2, 20)] * 3)


def zoomed(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """What skimage.transform.resize(mode="edge", anti_aliasing=False) does, in double precision."""
    zoom = [new / old for new, old in zip(shape, array.shape, strict=True)]
    made = ndimage.zoom(array.astype(float), zoom, order=order, mode="nearest", grid_mode=True)
    return np.clip(made, array.min(), array.max())


@settings(max_examples=60, deadline=None)
@given(source=SIZES, target=SIZES, seed=st.integers(0, 2**32 - 1))
def test_scans_are_resized_as_by_scikit_image(
    source: tuple[int, int, int], target: tuple[int, int, int], seed: int
) -> None:
    """Cubic resampling, overshoot clipped, is scikit-image's to single precision, whatever the sizes."""
    array = np.random.default_rng(seed).normal(size=source).astype(np.float32)
    ours = resample_scan(array.copy(), weights_between(source, target, None, 3), None)
    assert ours.shape == target
    assert np.abs(ours - zoomed(array, target, 3)).max() < 2e-5


@settings(max_examples=60, deadline=None)
@given(source=SIZES, target=SIZES, thick=st.integers(0, 2), seed=st.integers(0, 2**32 - 1))
def test_thick_slices_are_taken_and_not_mixed(
    source: tuple[int, int, int], target: tuple[int, int, int], thick: int, seed: int
) -> None:
    """With a thick axis, each slice is resized by itself and the nearest one is taken."""
    array = np.random.default_rng(seed).normal(size=source).astype(np.float32)
    ours = resample_scan(array.copy(), weights_between(source, target, thick, 3), thick)
    plane = tuple(n for axis, n in enumerate(target) if axis != thick)
    slices = [zoomed(part, plane, 3) for part in np.moveaxis(array, thick, 0)]
    scale = source[thick] / target[thick]
    places = scale * (np.arange(target[thick]) + 0.5) - 0.5
    nearest = ndimage.map_coordinates(
        np.arange(source[thick], dtype=float), places[None], order=0, mode="nearest"
    )
    theirs = np.moveaxis(np.stack([slices[int(index)] for index in nearest]), 0, thick)
    assert np.abs(ours - theirs).max() < 2e-5


@pytest.mark.parametrize(
    ("scan", "plan", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((1, 1, 3), (1, 1, 1), None),  # more than three times, not three times
        ((1, 1, 3.1), (1, 1, 1), 2),
        ((1, 1, 1), (4, 1, 1), 0),
        ((5, 1, 1), (1, 1, 4), 0),  # the first grid decides
        ((0.3, 1.25, 1.25), (1, 1, 1), None),  # two thick axes
    ],
)
def test_the_thick_axis(scan: tuple[float, ...], plan: tuple[float, ...], axis: int | None) -> None:
    """Thick is more than three times the smallest voxel size, in the first grid or else the second."""
    assert thick_axis(scan, plan) == axis


def test_the_grid_is_rounded_as_python_does() -> None:
    """Half voxels are rounded to even, as in nnU-Net; at least one voxel is left."""
    assert [grid_size(size, 1.0, 2.0) for size in (1, 3, 5, 7)] == [1, 2, 2, 4]


def test_holes_are_filled() -> None:
    """A hole counts as inside, a bay that reaches the border doesn't."""
    mask = np.ones((5, 5, 5), bool)
    mask[2, 2, 2] = mask[0, 0, :3] = False
    inside = filled(mask)
    assert inside[2, 2, 2]
    assert not inside[0, 0, 1]


@pytest.mark.parametrize("region", ["foreground", "crop", "filled"])
def test_the_region_of_the_z_score(region: str) -> None:
    """Statistics are of the region that the plan names, and outside a filled one nothing changes."""
    array = np.random.default_rng(0).normal(50, 9, (6, 6, 6)).astype(np.float32)
    array[0] = array[3, 3, 3] = 0
    mask = array != 0
    inside = {"foreground": mask, "crop": np.ones_like(mask), "filled": filled(mask)}[region]
    expected = (array - array[inside].mean()) / array[inside].std()
    if region == "filled":
        expected[~inside] = 0
    got = normalise(array.copy(), mask, Normalisation("zscore", region=region))  # type: ignore[arg-type]
    assert np.abs(got - expected).max() < 1e-5


def test_stored_axes_stay() -> None:
    """With 'stored' a scan in any orientation keeps its axes; padding by the convention is zero."""
    array = np.random.default_rng(0).uniform(1, 2, (8, 9, 10)).astype(np.float32)
    affine = np.diag([-2.0, 2, -2, 1])[[1, 2, 0, 3]]
    plan = make_plan(orientation="stored", convention="nnunet")
    prepared = preprocess(Volume(array, affine), plan)
    assert np.array_equal(prepared.array[0], array)
    assert pad(prepared.array, (8, 9, 12), "nnunet")[..., 0].max() == 0
    assert pad(prepared.array, (8, 9, 12))[..., 0].max() > 0


def test_plans_without_the_convention_are_what_they_were() -> None:
    """Fields that came later are not written where they say what was meant before; others come back."""
    body = make_plan().to_json()
    assert "convention" not in body
    assert set(body["normalisation"]) == {"scheme", "clip_hu", "mean_hu", "std_hu"}
    plan = make_plan(convention="nnunet", normalisation=Normalisation("zscore", region="filled"))
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(SegdistillError, match="windows"):
        Plan.from_json(replace(plan, mode="whole").to_json())
