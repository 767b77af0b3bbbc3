"""Scans are rendered from label maps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segdistill.files import SegdistillError
from segdistill.params import build
from segdistill.runtime.preprocess import preprocess
from segdistill.simulation.rendering.contrast import Brightness, t1_like
from segdistill.simulation.rendering.knobs import USUAL, MRIKnobs, RenderingKnobs
from segdistill.simulation.rendering.labelmap import BORDER, LabelMap
from segdistill.simulation.rendering.render import Rendered, render, served_scale
from segdistill.simulation.rendering.scanner import Look, scan
from segdistill.simulation.rendering.scene import draw_head
from segdistill.simulation.rendering.smooth import SPLINE_SD, Smooth, bell, slices, spline
from segdistill.volume import Volume
from tests.simulation.rendering_heads import flat, head, person, plan

PERSON = person()
RAW = plan(raw=True)
STILL = USUAL.still()


def drawn(knobs: RenderingKnobs = STILL, seed: int = 0, **others: Any) -> Rendered:
    """The whole of the small head in its own brightness, unless the arguments say otherwise."""
    given = {"source": PERSON, "plan": RAW, "patch_size": None, "contrast": flat} | others
    return render(knobs=knobs, random=np.random.default_rng(seed), **given)


def inner(source: LabelMap) -> Tensor:
    """The codes without their border."""
    return source.codes[BORDER:-BORDER, BORDER:-BORDER, BORDER:-BORDER]


def channels(source: LabelMap, codes: Tensor) -> Tensor:
    """The plan's channels of compact codes."""
    return torch.tensor(source.channels(RAW), dtype=torch.uint8)[codes.long()]


# ---- geometry


def test_with_every_effect_off_the_map_comes_out() -> None:
    """A grid like the map's gives every voxel's structure and its code's brightness."""
    made = drawn()
    assert torch.equal(made.label, channels(PERSON, inner(PERSON)))
    bright = torch.from_numpy(flat(PERSON).mean).float()[inner(PERSON).long()]
    assert torch.allclose(made.image[0], bright, atol=0.0, rtol=1e-6)


def test_a_finer_map_comes_out_downsampled() -> None:
    """Where the parts of a voxel are one code, a map of 2 mm gives on 4 mm what a map of 4 mm gives."""
    fine = person(np.kron(head(), np.ones((2, 2, 2), np.int32)), voxel_mm=2.0)
    coarse, made = drawn(), drawn(source=fine)
    assert torch.equal(made.label, coarse.label)
    assert torch.allclose(made.image, coarse.image)


def test_a_voxel_of_two_tissues_is_as_bright_as_its_parts() -> None:
    """Across a border, brightness lies between the two codes', in steps of a voxel's parts."""
    codes = np.zeros((16, 16, 16), np.int32)
    codes[:7], codes[7:] = 2, 24  # the border lies within a voxel of the coarse grid
    made = drawn(source=person(codes, voxel_mm=2.0))
    line = made.image[0, :, 4, 4]
    assert line[[0, -1]].tolist() == sorted(line[[0, -1]].tolist())
    assert line[0] < line[3] < line[-1]
    assert (line[:3] == line[0]).all()
    assert (line[4:] == line[-1]).all()


def test_mirrored_heads_have_mirrored_scans() -> None:
    """Left for right turns image and label alike."""
    usual, mirrored = drawn(), drawn(replace(STILL, flip=1.0))
    assert torch.equal(mirrored.label.flip(0), usual.label)
    assert torch.equal(mirrored.image.flip(1), usual.image)


@pytest.mark.parametrize(
    "knobs",
    [
        {"rotate_sd_deg": 10.0},
        {"scale_sd": 0.1, "shear_sd": 0.05},
        {"warp_mm": (6.0, 6.0), "warp_step_mm": (30.0, 30.0)},
        {"ventricle_scale": (1.6, 1.6)},
        {"cut_below": 1.0, "cut_side": 0.5},
    ],
)
def test_label_and_image_move_together(knobs: dict[str, Any]) -> None:
    """Wherever a voxel has exactly one code's brightness, its label is that code's structure."""
    made = drawn(USUAL.still(**knobs), seed=3)
    assert made.label.shape != drawn().label.shape or not torch.equal(made.label, drawn().label)
    bright = made.image[0]
    away, code = (bright[..., None] - torch.from_numpy(flat(PERSON).mean).float()).abs().min(dim=-1)
    pure = away < 1e-5
    assert pure.float().mean() > 0.5
    assert torch.equal(made.label[pure], channels(PERSON, code[pure]))


def test_a_warp_never_folds() -> None:
    """Along every axis, and in volume, places in the map keep their order under the strongest warp."""
    knobs = USUAL.still(warp_mm=(40.0, 40.0), warp_step_mm=(24.0, 24.0))
    for seed in range(3):
        scene = draw_head(PERSON, knobs, flat, np.random.default_rng(seed))
        x, y, z = (np.arange(-40.0, 40.0, 2.0) for _ in range(3))
        at = scene.in_map(PERSON, (x, y, z)).double() * PERSON.voxel_mm / 2.0
        slope = torch.stack([torch.stack(torch.gradient(place)) for place in at])
        assert torch.linalg.det(slope.permute(2, 3, 4, 0, 1)).min() > 0.0


def test_ventricles_grow_and_shrink() -> None:
    """Their volume follows the drawn size, and the rest of the head stays."""
    size = [
        (drawn(USUAL.still(ventricle_scale=(scale, scale))).label == 2).sum()
        for scale in (0.6, 1.0, 1.6)
    ]
    assert size[0] < 0.8 * size[1] < size[1] < 0.8 * size[2]
    far = [drawn(USUAL.still(ventricle_scale=(s, s))).image[0, :2] for s in (1.0, 1.6)]
    assert torch.equal(*far)


def test_a_part_of_a_scan_is_what_the_whole_has_there() -> None:
    """Place and brightness of a voxel don't depend on what else is looked at."""
    knobs = USUAL.still(rotate_sd_deg=8.0, warp_mm=(3.0, 3.0), bias_sd=(0.3, 0.3))
    scene = draw_head(PERSON, knobs, flat, np.random.default_rng(1))
    x, y, z = (
        np.arange(low + 2.0, high, 4.0)
        for low, high in zip(scene.stored.low, scene.stored.high, strict=True)
    )
    random = np.random.default_rng(0)
    whole, _ = scan(PERSON, scene, Look((x, y, z), (4.0, 4.0, 4.0)), random)
    part, _ = scan(PERSON, scene, Look((x[4:20], y[6:22], z[2:18]), (4.0, 4.0, 4.0)), random)
    away = (whole[4:20, 6:22, 2:18] - part).abs()
    assert away.median() < 0.02
    assert (away > 0.5).float().mean() < 0.03  # places are interpolated between other nodes


# ---- determinism, placement, size


def test_the_same_state_gives_the_same_patch() -> None:
    """All randomness comes from the generator that is handed in."""
    one, two, other = (
        drawn(USUAL, seed=seed, plan=plan(), patch_size=(16, 16, 16), contrast=t1_like)
        for seed in (5, 5, 6)
    )
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.label, two.label)
    assert not torch.equal(one.image, other.image)


def test_patches_are_centred_on_structures() -> None:
    """With a share of 1, a structure lies about the middle, a small one as often as a large one."""
    met = dict.fromkeys((3, 4, 5, 7), 0)
    for seed in range(60):
        label = drawn(seed=seed, patch_size=(8, 8, 8), foreground_share=1.0).label
        assert label.any()
        for code in met:
            met[code] += bool((label == code).any())
    assert min(met.values()) > 15


def test_a_patch_larger_than_the_scan_repeats_its_border() -> None:
    """Beyond the scan its outermost voxels go on, evenly on both sides, with their labels."""
    whole = drawn()
    size = tuple(n + 6 for n in whole.label.shape)
    made = drawn(patch_size=size)
    assert torch.equal(made.label[3:-3, 3:-3, 3:-3], whole.label)
    assert torch.equal(made.image[0, 0], made.image[0, 3])
    assert torch.equal(made.label[:, :, -1], made.label[:, :, -4])


def test_a_whole_scan_is_made_up_to_the_divisor() -> None:
    """Without a patch size, every axis is the smallest multiple of the plan's divisor."""
    made = drawn(plan=plan(raw=True, size_divisor=[16, 16, 16]))
    assert made.label.shape == (32, 32, 32)
    assert torch.equal(made.label[:26, :30, :28], drawn().label)


# ---- what a scanner does


def test_tissues_are_as_bright_as_in_t1() -> None:
    """White matter is brighter than grey, grey than fluid, and left about as bright as right."""
    names = [PERSON.tissues[tissue].name for tissue in PERSON.tissue]
    knobs = replace(USUAL, any_contrast=0.0)
    for seed in range(20):
        mean = t1_like(PERSON, knobs, np.random.default_rng(seed)).mean
        by = {name: mean[[n == name for n in names]] for name in set(names)}
        assert by["white_matter"].min() > by["cortex"].max() > by["ventricles"].max()
        assert by["cortex"].min() > by["bone"].max() - 0.3
        assert np.ptp(by["white_matter"]) < 0.1


def test_any_contrast_forgets_t1() -> None:
    """With a chance of 1, white matter is as often darker than grey as brighter; air is dark."""
    names = [PERSON.tissues[tissue].name for tissue in PERSON.tissue]
    knobs = replace(USUAL, any_contrast=1.0)
    means = [t1_like(PERSON, knobs, np.random.default_rng(seed)).mean for seed in range(40)]
    darker = np.mean([m[names.index("white_matter")] < m[names.index("cortex")] for m in means])
    assert 0.25 < darker < 0.75
    assert max(m[0] for m in means) < 0.03


def _uneven(source: LabelMap, grain: float, patches: float) -> Brightness:
    still = flat(source)
    white = np.array([source.tissues[t].name == "white_matter" for t in source.tissue])
    return replace(still, grain=grain * white, patches=patches * white)


@pytest.mark.parametrize(("grain", "patches"), [(0.2, 0.0), (0.0, 0.2)])
def test_texture_stays_within_its_tissue(grain: float, patches: float) -> None:
    """Grain and slow variation have the deviation that the tissue has, and no other tissue changes."""
    still = drawn()
    knobs = replace(STILL, patch_mm=(12.0, 12.0))
    made = drawn(knobs, contrast=lambda source, *_: _uneven(source, grain, patches))
    change = (made.image - still.image)[0]
    white = still.label == 4
    assert not change[~white].any()
    assert 0.12 < change[white].std() < 0.28
    neighbours = torch.corrcoef(torch.stack([change[9:11].flatten(), change[10:12].flatten()]))[0, 1]
    assert (neighbours > 0.3) == (patches > 0.0)


def test_noise_is_that_of_magnitude_images() -> None:
    """In tissue it is as strong as the knob says; in air its mean is that of Rayleigh's distribution."""
    still, made = drawn().image, drawn(replace(STILL, noise=(0.1, 0.1))).image
    bright = still > 1.0
    assert 0.09 < (made - still)[bright].std() < 0.11
    assert abs(float((made - still)[bright].mean())) < 0.01
    assert made[still == 0].mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.05)
    added = drawn(replace(STILL, noise=(0.1, 0.1), magnitude=False)).image
    assert abs(float(added[still == 0].mean())) < 0.01


def test_blur_keeps_the_mean_and_smooths() -> None:
    """Point spread takes neighbouring voxels closer together and their mean nowhere."""
    still, made = drawn().image[0], drawn(replace(STILL, blur_mm=(6.0, 6.0))).image[0]
    assert made.mean() == pytest.approx(float(still.mean()), rel=0.05)
    assert made.diff(dim=1).abs().mean() < 0.8 * still.diff(dim=1).abs().mean()
    assert torch.equal(drawn(replace(STILL, blur_mm=(3.0, 3.0))).label, drawn().label)


def test_thick_slices_smooth_one_axis() -> None:
    """Slices of three voxels change slowly along one axis; labels stay on the grid."""
    still, made = drawn(), drawn(replace(STILL, thick=1.0, thick_mm=(12.0, 12.0)))
    kept = [
        float(
            made.image[0].diff(n=2, dim=axis).abs().sum()
            / still.image[0].diff(n=2, dim=axis).abs().sum()
        )
        for axis in range(3)
    ]
    assert sorted(kept)[0] < 0.5 < sorted(kept)[1]
    assert torch.equal(made.label, still.label)


def test_bias_is_smooth_and_multiplies() -> None:
    """Within a tissue, brightness changes slowly; air stays dark and labels stay."""
    still, made = drawn(), drawn(replace(STILL, bias_sd=(0.3, 0.3), bias_step_mm=(60.0, 60.0)))
    gain = made.image / still.image
    tissue = still.image > 0
    assert gain[tissue].std() > 0.05
    both = tissue[:, 1:] & tissue[:, :-1]
    assert gain.diff(dim=1).abs()[both].max() < 0.15
    assert not made.image[~tissue].any()
    assert torch.equal(made.label, still.label)


def test_contrast_differs_from_place_to_place() -> None:
    """The ratio of two tissues isn't the same everywhere, which no bias field can do."""
    made = drawn(
        replace(STILL, contrast_sd=(0.3, 0.3), bias_step_mm=(60.0, 60.0)),
        contrast=lambda source, *_: replace(flat(source), mean=flat(source).mean / 10.0),
    ).image
    still = drawn(contrast=lambda s, *_: replace(flat(s), mean=flat(s).mean / 10.0)).image
    gain = made / still
    tissue = (still[..., 1:] > 0) & (still[..., :-1] > 0) & (still.diff(dim=-1) != 0)
    assert gain.diff(dim=-1).abs()[tissue].max() > 0.05


def test_gamma_bends_and_keeps_the_order() -> None:
    """Every code stays one brightness, and a brighter one stays brighter."""
    still, made = drawn().image, drawn(replace(STILL, gamma=1.0, gamma_sd=0.3)).image
    pairs = torch.unique(torch.stack([still.flatten(), made.flatten()]), dim=1)
    assert pairs.shape[1] == len(still.unique())
    assert (pairs[1].diff() > 0).all()
    assert not torch.allclose(still, made)


def test_a_stripped_skull_leaves_the_brain_alone() -> None:
    """Far from the brain all is 0, without a label; the brain is there."""
    knobs = replace(STILL, skull_stripped=1.0, strip_mm=(2.0, 2.0), margin_mm=(0.0, 0.0))
    still, made = drawn(), drawn(knobs)
    x, y, z = (slice(*extent) for extent in _where_content(made))
    brain = (still.label > 1).sum()
    assert int((made.label > 1).sum()) == pytest.approx(int(brain), rel=0.03)
    assert (made.image > 0).sum() < 1.6 * brain
    assert not made.label[made.image[0] == 0].any()
    assert made.image[0, x, y, z].numel() < still.image.numel()


def _where_content(made: Rendered) -> list[tuple[int, int]]:
    at = torch.nonzero(made.image[0])
    return [(int(at[:, axis].min()), int(at[:, axis].max()) + 1) for axis in range(3)]


def test_a_ragged_edge_strays() -> None:
    """With a ragged edge, about as much is lost here as is left there."""
    even = USUAL.still(skull_stripped=1.0, strip_mm=(6.0, 6.0))
    left = [(drawn(replace(even, strip_ragged_mm=(mm, mm))).image != 0)[0] for mm in (0.0, 4.0)]
    assert (left[1] & ~left[0]).sum() > 50
    assert (left[0] & ~left[1]).sum() > 50


def test_beyond_the_field_of_view_is_air_or_nothing() -> None:
    """What is cut from below is stored as air without labels, or isn't stored."""
    cut = USUAL.still(cut_below=1.0, cut_into_mm=(10.0, 5.0))
    air = drawn(replace(cut, cut_air=1.0), seed=2)
    gone = drawn(replace(cut, cut_air=0.0), seed=2)
    empty = (air.image[0].amax(dim=(0, 1)) == 0).sum()
    assert air.image.shape == drawn().image.shape
    assert 1 <= empty < 16
    assert not air.label[..., :empty].any()
    assert abs(gone.image.shape[3] - (air.image.shape[3] - int(empty))) <= 1
    assert gone.image[0, ..., 0].any()


def test_air_around_the_head_is_stored() -> None:
    """A margin makes the scan larger, up to what inference would leave of it."""
    made = drawn(USUAL.still(margin_mm=(8.0, 8.0)))
    assert made.label.shape == tuple(n + 4 for n in drawn().label.shape)
    assert not made.image[0, :2].any()
    far = drawn(USUAL.still(margin_mm=(80.0, 80.0)))
    assert far.label.shape == tuple(n + 5 for n in drawn().label.shape)


# ---- normalisation


@pytest.mark.parametrize("rule", ["above_mean", "nonzero"])
@pytest.mark.parametrize("stripped", [0.0, 1.0])
def test_a_patch_is_normalised_as_the_served_scan(rule: str, stripped: float) -> None:
    """Mean and deviation are within 0.2 deviations and 10% of what preprocess finds in the scan."""
    source = person(head((52, 60, 56)), voxel_mm=3.0)
    how = plan(3.0, foreground=rule)
    for seed in range(4):
        random = np.random.default_rng(seed)
        scene = draw_head(source, replace(USUAL, skull_stripped=stripped), t1_like, random)
        ends = zip(scene.stored.low, scene.stored.high, strict=True)
        x, y, z = (np.arange(low + 1.5, high, 3.0) for low, high in ends)
        whole, _ = scan(source, scene, Look((x, y, z), how.spacing_mm), random)
        served = preprocess(Volume(whole.numpy(), np.diag([3.0, 3.0, 3.0, 1.0])), how)
        ours = served_scale(source, scene, how, random)(whole).numpy()[served.geometry.slices]
        slope, offset = np.polyfit(served.array.ravel(), ours.ravel(), 1)
        assert slope == pytest.approx(1.0, abs=0.1)
        assert offset == pytest.approx(0.0, abs=0.2)


def test_what_cannot_be_normalised_is_refused() -> None:
    """A plan whose normalisation asks for the whole scan's shape is named, as is too coarse a grid."""
    with pytest.raises(SegdistillError, match="filled"):
        drawn(plan=plan(normalisation={"scheme": "zscore", "region": "filled"}))
    with pytest.raises(SegdistillError, match="too coarse"):
        drawn(plan=plan(20.0))


# ---- everything at once


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(6, 30)] * 3),
    voxel=st.sampled_from([1.0, 2.0, 4.0]),
    ratio=st.sampled_from([0.8, 1.0, 1.5, 2.0, 3.7]),
    size=st.tuples(*[st.integers(1, 24)] * 3) | st.none(),
    region=st.sampled_from(["foreground", "crop"]),
    seed=st.integers(0, 2**32),
)
def test_any_head_on_any_grid_is_a_patch_of_numbers(
    shape: tuple[int, int, int],
    voxel: float,
    ratio: float,
    size: tuple[int, int, int] | None,
    region: str,
    seed: int,
) -> None:
    """Whatever is drawn, image and label have the patch's shape, and no value isn't a number."""
    source = person(head(shape), voxel_mm=voxel)
    how = plan(voxel * ratio, normalisation={"scheme": "zscore", "region": region})
    made = drawn(
        USUAL,
        seed=seed,
        source=source,
        plan=how,
        patch_size=size,
        foreground_share=0.7,
        contrast=t1_like,
    )
    assert made.image.shape == (1, *made.label.shape)
    assert size is None or made.label.shape == size
    assert made.image.dtype == torch.float32
    assert made.label.dtype == torch.uint8
    assert torch.isfinite(made.image).all()
    assert int(made.label.max()) < how.channels_out


# ---- knobs and weights


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"noise": (0.1, 0.0)}, "low to high"),
        ({"flip": 1.5}, "0 to 1"),
        ({"warp_step_mm": (0.0, 10.0)}, "above 0"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    """A knob's mistake is named."""
    with pytest.raises(ValueError, match=says):
        replace(USUAL, **wrong)


def test_knobs_come_from_parameters() -> None:
    """All keys must be there, lists are ranges."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(USUAL).items()}
    assert build(MRIKnobs, values, "params.yaml", "rendering") == USUAL
    with pytest.raises(SegdistillError, match=r"params\.yaml: rendering\.no_such is no knob"):
        build(MRIKnobs, {**values, "no_such": 1}, "params.yaml", "rendering")


@given(st.floats(0.05, 3.0), st.integers(8, 40))
def test_point_spread_has_its_width(sigma: float, count: int) -> None:
    """Rows sum to one, and in the middle of a long axis the deviation is the one asked for."""
    weights = bell(count, sigma)
    assert weights is not None
    assert torch.allclose(weights.sum(dim=1), torch.ones(count))
    if count > 16 * sigma:
        far = torch.arange(count) - count // 2
        assert float((weights[count // 2] * far**2).sum()) == pytest.approx(sigma**2, rel=0.02)


@given(st.integers(1, 40), st.floats(1.0, 8.0))
def test_slices_there_and_back_keep_a_constant(count: int, thick: float) -> None:
    """A constant axis stays constant, through slices and back."""
    there, back = slices(count, thick)
    assert torch.allclose(back @ (there @ torch.ones(count)), torch.ones(count), atol=1e-6)


def test_splines_sum_to_one_and_have_their_spread() -> None:
    """A field of ones is one everywhere, and a drawn field has the deviation that it is scaled by."""
    assert torch.allclose(spline(np.linspace(1.0, 8.0, 50), 10).sum(dim=1), torch.ones(50))
    field = Smooth.drawn(1, np.zeros(3), np.full(3, 200.0), 8.0, np.random.default_rng(0))
    at = np.linspace(0.0, 200.0, 90)
    assert float(field.at((at, at, at)).std()) == pytest.approx(SPLINE_SD, rel=0.05)
