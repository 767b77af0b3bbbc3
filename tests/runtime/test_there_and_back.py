from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt
from scipy.ndimage import map_coordinates

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.runtime.memory_order import MemoryOrder
from segdistill.runtime.plan import Normalisation, Structure
from segdistill.runtime.preprocess import (
    foreground,
    normalise,
    preprocess,
    preprocess_label,
    slice_counts,
)
from segdistill.runtime.resample import argmax_resampled, axis_weights, resample, target_size
from segdistill.runtime.restore import Restorer, restore, winner
from segdistill.volume import Volume
from tests.onnx_models import ball_scan, make_plan

CODES = ["".join(c) for order in permutations(("LR", "PA", "IS")) for c in product(*order)]
OUTER_INNER = (Structure(7, "outer"), Structure(3, "inner"))


def affine_for(codes, spacing, shape):
    """An affine with these axis codes and voxel sizes, and the volume's centre at the origin."""
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(axcodes2ornt(tuple(codes))):
        affine[int(world), axis] = sign * spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    affine[3, 3] = 1
    return affine


def places(shape, affine):
    """RAS mm of every voxel's centre, (X, Y, Z, 3)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def egg_in_egg(shape, affine):
    """Codes of an egg (3) inside a larger one (7), off the middle and different along every axis."""
    radius = np.linalg.norm((places(shape, affine) - [3.0, -2.0, 1.0]) / [1.0, 0.9, 0.8], axis=-1)
    return np.select([radius < 13, radius < 22], [3, 7], 0).astype(np.uint8)


def one_hot(channels, count):
    """(K, x, y, z) logits that say ``channels``."""
    return (channels[None] == np.arange(count)[:, None, None, None]).astype(np.float32)


def dice(a, b):
    """Dice of two masks."""
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def there_and_back(codes, spacing, extent_mm, plan):
    """A label map, and the same after the plan's grid and back as a perfect network would give it."""
    shape = tuple(max(2, round(extent / size)) for extent, size in zip(extent_mm, spacing, strict=True))
    affine = affine_for(codes, spacing, shape)
    labels = egg_in_egg(shape, affine)
    scan = Volume(labels.astype(np.float32) * 20 + 1, affine)
    geometry = preprocess(scan, plan).geometry
    channels = preprocess_label(Volume(labels, affine), plan, geometry)
    assert channels.shape == geometry.grid_shape
    return labels, restore([one_hot(channels, plan.channels_out)], geometry, plan)


@settings(max_examples=30, deadline=None)
@given(
    codes=st.sampled_from(CODES),
    target=st.sampled_from(CODES),
    spacing=st.tuples(*[st.floats(0.9, 3.2)] * 3),
    grid=st.tuples(*[st.floats(0.9, 2.2)] * 3),
    extent=st.tuples(*[st.floats(52, 70)] * 3),
    foreground=st.sampled_from(["nonzero", "above_mean"]),
)
def test_labels_survive_any_grid(codes, target, spacing, grid, extent, foreground):
    """Whatever the axes and voxel sizes, labels come back from the plan's grid to their place."""
    plan = make_plan(structures=OUTER_INNER, orientation=target, spacing_mm=grid, foreground=foreground)
    labels, back = there_and_back(codes, spacing, extent, plan)
    assert back.shape == labels.shape
    assert back.dtype == np.uint8
    for code in (3, 7):
        assert dice(back == code, labels == code) > 0.9


@settings(max_examples=20, deadline=None)
@given(
    codes=st.sampled_from(CODES),
    target=st.sampled_from(CODES),
    spacing=st.sampled_from([0.9, 1.7, 2.0]),
    extent=st.tuples(*[st.floats(50, 70)] * 3),
)
def test_labels_exact_on_the_same_spacing(codes, target, spacing, extent):
    """Where the plan's spacing is the scan's, labels come back the same in every voxel."""
    plan = make_plan(structures=OUTER_INNER, orientation=target, spacing_mm=(spacing,) * 3)
    labels, back = there_and_back(codes, (spacing,) * 3, extent, plan)
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
@pytest.mark.parametrize("world", [0, 1, 2])
def test_border_is_where_the_logits_cross(codes, world):
    """Logits that are a linear function of place give a half-space with its border where they cross."""
    shape, spacing, grid_mm = (40, 30, 20), (1.4, 1.9, 4.0), (2.0, 2.0, 2.0)
    affine = affine_for(codes, spacing, shape)
    plan = make_plan(spacing_mm=grid_mm)
    geometry = preprocess(Volume(np.ones(shape, np.float32), affine), plan).geometry
    on_grid = (
        places(geometry.grid_shape, affine_for("RAS", grid_mm, geometry.grid_shape))[..., world] - 5.5
    )
    labels = restore([np.stack([0 * on_grid, on_grid]).astype(np.float32)], geometry, plan)
    beyond = places(shape, affine)[..., world] - 5.5
    clear = np.abs(beyond) > 0.05
    np.testing.assert_array_equal(labels[clear] == 1, beyond[clear] > 0)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL", "ILA"])
def test_oriented_to_the_plan(codes):
    """A scan whose intensity is its place in mm comes out with the plan's axes rising with it."""
    shape, spacing = (20, 22, 24), (2.0, 2.0, 2.0)
    affine = affine_for(codes, spacing, shape)
    for world in range(3):
        values = places(shape, affine)[..., world].astype(np.float32) + 100
        prepared = preprocess(Volume(values, affine), make_plan(spacing_mm=spacing)).array[0]
        np.testing.assert_allclose(np.diff(prepared, axis=world), 2.0, atol=1e-4)


def test_resampled_where_it_belongs():
    """The plan's grid shares the crop's centre, and linear functions of place keep their values."""
    shape, spacing = (30, 26, 40), (1.3, 2.4, 0.8)
    affine = affine_for("RAS", spacing, shape)
    slope = np.array([1.0, -2.0, 0.5])
    values = (places(shape, affine) @ slope + 500).astype(np.float32)
    prepared = preprocess(Volume(values, affine), make_plan(spacing_mm=(1.0, 1.0, 1.0)))
    grid = prepared.geometry.grid_shape
    expected = places(grid, affine_for("RAS", (1.0, 1.0, 1.0), grid)) @ slope + 500
    inner = (slice(3, -3),) * 3  # at the ends there is nothing beyond to average with
    np.testing.assert_allclose(prepared.array[0][inner], expected[inner], atol=0.03)  # 0.02 mm


@pytest.mark.parametrize("antialias", [True, False])
def test_finer_grid_is_plain_linear(antialias):
    """Towards finer voxels, the result is SciPy's linear interpolation at the same places."""
    random = np.random.default_rng(0)
    array = random.random((9, 10, 11), np.float32)
    sizes, spacing = [target_size(n, 2.0, 1.3) for n in array.shape], 1.3
    axes = [axis_weights(n, 2.0, m, spacing, antialias) for n, m in zip(array.shape, sizes, strict=True)]
    at = [
        (np.arange(m) - (m - 1) / 2) * 0.65 + (n - 1) / 2
        for n, m in zip(array.shape, sizes, strict=True)
    ]
    expected = map_coordinates(array, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(resample(array, axes), expected, atol=1e-6)


def test_coarser_grid_does_not_alias():
    """A pattern finer than the coarser grid turns into its mean instead of a false pattern."""
    array = np.ascontiguousarray(
        np.broadcast_to((np.arange(90) % 2)[:, None, None], (90, 4, 4)), np.float32
    )
    coarse = resample(array, [axis_weights(90, 1.0, 30, 3.0, antialias=True), None, None])
    np.testing.assert_allclose(coarse[2:-2], 0.5, atol=0.07)


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 60),
    spacing=st.floats(0.05, 20),
    target=st.floats(0.05, 20),
    antialias=st.booleans(),
)
def test_weights_are_means(size, spacing, target, antialias):
    """On any axis, there and back, target voxels are weighted means; against aliasing, of all voxels."""
    count = target_size(size, spacing, target)
    if count > 5000:
        return
    for weights in (
        axis_weights(size, spacing, count, target, antialias),
        axis_weights(count, target, size, spacing, antialias),
    ):
        if weights is not None:
            np.testing.assert_allclose(weights.matrix.sum(axis=1), 1, atol=1e-5)
            assert (weights.matrix >= 0).all()
            assert not antialias or weights.matrix.any(axis=0).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    source=st.tuples(*[st.integers(3, 14)] * 3),
    ratio=st.tuples(*[st.sampled_from([0.3, 0.5, 0.8, 1.0, 1.7])] * 3),
    air=st.booleans(),
    antialias=st.booleans(),
)
def test_running_maximum_is_argmax(seed, source, ratio, air, antialias):
    """The slab-wise running maximum gives what argmax of all resampled channels gives."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal((4, *source)).astype(np.float32)
    if air:
        logits[0, :, 2:] += 9
        logits[0, 1:] += 9
    sizes = [target_size(n, r, 1.0) for n, r in zip(source, ratio, strict=True)]
    axes = [axis_weights(n, r, m, 1.0, antialias) for n, r, m in zip(source, ratio, sizes, strict=True)]
    every = np.stack([resample(channel, axes) for channel in logits])
    result = argmax_resampled(lambda k, where: logits[k][where], winner(logits), 4, axes)
    top = np.sort(every, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    np.testing.assert_array_equal(result[clear], every.argmax(axis=0)[clear])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.sets(st.integers(1, 13), max_size=6),
    spacing=st.tuples(*[st.sampled_from([0.9, 1.3, 2.0, 3.1])] * 3),
    codes=st.sampled_from(CODES),
)
def test_logits_in_any_slabs(seed, cuts, spacing, codes):
    """Logits that arrive slab by slab give the label map, and the counts, that all at once give."""
    plan = make_plan(structures=OUTER_INNER)
    shape = tuple(max(2, round(28 / size)) for size in spacing)
    scan = Volume(np.ones(shape, np.float32), affine_for(codes, spacing, shape))
    geometry = preprocess(scan, plan).geometry
    logits = np.random.default_rng(seed).standard_normal((3, *geometry.grid_shape)).astype(np.float32)
    logits[0, : seed % 8] += 9
    whole = restore([logits], geometry, plan)
    restorer = Restorer(geometry, plan)
    edges = [0, *sorted(cut for cut in cuts if cut < geometry.grid_shape[0]), geometry.grid_shape[0]]
    for start, stop in pairwise(edges):
        restorer.add(logits[:, start:stop])
    assert np.mean(restorer.labels != whole) < 1e-3  # other block sizes may round a tie the other way
    assert restorer.voxels[1:].tolist() == [np.sum(restorer.labels == code) for code in (7, 3)]


def test_logits_are_missing():
    """A label map of which logits are missing, or too many, isn't given out."""
    plan = make_plan(1)
    geometry = preprocess(ball_scan()[0], plan).geometry
    restorer = Restorer(geometry, plan)
    restorer.add(np.zeros((2, 5, *geometry.grid_shape[1:]), np.float32))
    with pytest.raises(SegdistillError, match=r"logits have shape \(2, 5"):
        _ = restorer.labels
    with pytest.raises(SegdistillError, match="plan and scan need"):
        restorer.add(np.zeros((2, *geometry.grid_shape), np.float32))


@given(
    order=st.permutations(range(3)),
    steps=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_turned_views(order, steps, shape):
    """However a volume is turned, along memory it is contiguous and back again it is the same."""
    stored = np.random.default_rng(0).random(shape, np.float32)
    view = stored[tuple(slice(None, None, step) for step in steps)].transpose(order)
    order = MemoryOrder.of(view)
    along = order.along_memory(view)
    assert along.flags.c_contiguous
    np.testing.assert_array_equal(order.back(along), view)
    mask = view > 0.5
    for axis, counts in enumerate(slice_counts(mask)):
        others = tuple(other for other in range(3) if other != axis)
        np.testing.assert_array_equal(counts, np.count_nonzero(mask, axis=others))


def test_slabs_join_up(monkeypatch):
    """Cut into many slabs, the running maximum gives the same label map."""
    random = np.random.default_rng(1)
    logits = random.standard_normal((3, 20, 18, 16)).astype(np.float32)
    axes = [
        axis_weights(n, 2.0, target_size(n, 2.0, 1.5), 1.5, antialias=False) for n in logits.shape[1:]
    ]
    whole = argmax_resampled(lambda k, where: logits[k][where], winner(logits), 3, axes)
    monkeypatch.setattr("segdistill.runtime.resample._SLAB_BYTES", 1)
    sliced = argmax_resampled(lambda k, where: logits[k][where], winner(logits), 3, axes)
    assert np.mean(whole != sliced) < 1e-3  # other block sizes may round an exact tie the other way


def test_crop_leaves_out_air_and_its_speckle():
    """Air around the content is cropped even with single bright voxels in it."""
    scan, mask = ball_scan((60, 60, 60), radius_mm=20)
    scan.array[1, 1, 1] = scan.array[58, 57, 2] = 300
    geometry = preprocess(scan, make_plan(foreground="above_mean")).geometry
    for axis, (start, stop) in enumerate(geometry.crop):
        inside = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        assert 5 <= inside[0] - start <= 7  # a margin of 10 mm, voxels of 2 mm
        assert 5 <= stop - 1 - inside[-1] <= 7


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.0, 5.0), (3.0, 3.0, 3.0)])
@pytest.mark.parametrize("fill", [-1000, -3024])
def test_the_crop_of_a_ct_finds_the_body_and_not_the_table(spacing, fill):
    """Table, arms and padding are cut away, the trunk with its gas and through all slices is kept."""
    shape = tuple(int(size / mm) for size, mm in zip((480, 360, 120), spacing, strict=True))
    at = [np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)]
    x, y, _ = np.meshgrid(*at, indexing="ij")
    hu = np.full(shape, fill, np.float32)
    trunk = ((x - 240) / 130) ** 2 + ((y - 180) / 90) ** 2 <= 1
    hu[trunk] = 40
    hu[(x - 240) ** 2 + (y - 220) ** 2 <= 30**2] = -1000  # gas
    hu[(y > 60) & (y < 64)] = 200  # a table's two shells
    hu[(y > 30) & (y < 34) & (np.abs(x - 240) < 200)] = 0
    for middle in (55, 425):
        hu[(x - middle) ** 2 + (y - 150) ** 2 <= 40**2] = 60
    plan = make_plan(
        foreground="body",
        modality="ct",
        normalisation=Normalisation("ct", (-900.0, 400.0), 0.0, 200.0),
    )
    crop = preprocess(Volume(hu, np.diag([*spacing, 1.0])), plan).geometry.crop
    for (start, stop), mm, (low, high) in zip(crop, spacing, ((110, 370), (90, 270)), strict=False):
        assert low - 18 <= start * mm <= low
        assert high <= stop * mm <= high + 18
    assert crop[2] == (0, shape[2])


def test_a_ct_of_something_thin_is_kept_whole():
    """Where nothing is as thick as a body, all that is no air counts."""
    hu = np.full((40, 40, 40), -1000.0, np.float32)
    hu[10:14, 10:14, 10:14] = 30
    assert np.array_equal(foreground(hu, "body", (1.0, 1.0, 1.0)), hu > -500)


def test_zscore_of_the_foreground():
    """Z-scored, the foreground has mean zero and standard deviation one, whatever the air is."""
    random = np.random.default_rng(0)
    array = random.normal(300, 40, (20, 20, 20)).astype(np.float32)
    array[:8] = 3
    mask = array > 100
    scaled = normalise(array.copy(), mask, Normalisation("zscore"))
    assert abs(scaled[mask].mean()) < 1e-4
    assert abs(scaled[mask].std() - 1) < 1e-4


def test_ct_clips_and_scales():
    """CT intensities are clipped and scaled by the plan's constants alone."""
    array = np.array([[[-1000.0, -100.0, 50.0, 3000.0]]], np.float32)
    scaled = normalise(array, array > 0, Normalisation("ct", (-150.0, 250.0), 50.0, 100.0))
    np.testing.assert_allclose(scaled.ravel(), [-2, -1.5, 0, 2])


def test_scan_without_content():
    """A scan in which no voxel counts as foreground is refused and not divided by zero."""
    with pytest.raises(SegdistillError, match=r"no content.*[Cc]heck"):
        preprocess(Volume(np.zeros((8, 8, 8), np.float32), np.eye(4)), make_plan())


def test_label_of_another_scan():
    """A label map of another shape or place is refused for training."""
    plan = make_plan(structures=OUTER_INNER)
    scan, mask = ball_scan()
    geometry = preprocess(scan, plan).geometry
    moved = scan.affine.copy()
    moved[0, 3] += 1
    for label in (Volume(mask[1:], scan.affine), Volume(mask, moved)):
        with pytest.raises(SegdistillError, match="grid of the scan"):
            preprocess_label(label, plan, geometry)


def test_codes_outside_the_plan_are_background():
    """A code that the plan doesn't have is background on the plan's grid."""
    scan, mask = ball_scan()
    plan = make_plan(structures=OUTER_INNER)
    geometry = preprocess(scan, plan).geometry
    channels = preprocess_label(
        Volume(np.where(mask, 300, 7).astype(np.int16), scan.affine), plan, geometry
    )
    assert sorted(np.unique(channels)) == [0, 1]
    assert channels[tuple(n // 2 for n in channels.shape)] == 0


def test_logits_of_another_scan():
    """Logits that don't fit the scan's geometry are refused with both shapes."""
    plan = make_plan()
    geometry = preprocess(ball_scan()[0], plan).geometry
    with pytest.raises(SegdistillError, match=r"\(2, 5, 5, 5\).*\(2, 40, 36, 32\)"):
        restore([np.zeros((2, 5, 5, 5), np.float32)], geometry, plan)


def test_what_is_ignored_stays_ignored_on_the_plans_grid():
    """Ignored voxels are no background: they keep their place and their share."""
    affine = affine_for("RAS", (2.0, 2.0, 2.0), (32, 32, 32))
    labels = egg_in_egg((32, 32, 32), affine)
    plan = make_plan(structures=OUTER_INNER, spacing_mm=(1.5, 1.5, 1.5))
    scan = Volume(labels.astype(np.float32) * 20 + 1, affine)
    geometry = preprocess(scan, plan).geometry
    usual = preprocess_label(Volume(labels, affine), plan, geometry)
    ignored = preprocess_label(
        Volume(np.where(labels == 7, IGNORED, labels).astype(np.uint8), affine), plan, geometry
    )
    inner = plan.codes.index(7)
    assert set(np.unique(ignored)) == (set(np.unique(usual)) - {inner}) | {IGNORED}
    # Where two are equally near, the lower channel is taken, and ignored is the last.
    assert (np.where(usual == inner, IGNORED, usual) != ignored).mean() < 0.002
