"""Scans of a trunk are rendered from its label map."""

from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.params import build
from segdistill.simulation.hounsfield import ENHANCEMENT, organ_hu
from segdistill.simulation.rendering.contrast import Brightness, in_hu
from segdistill.simulation.rendering.knobs import USUAL_CT, CTKnobs
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.render import Rendered, render
from segdistill.simulation.rendering.whole import renderer
from segdistill.volume import Volume
from tests.simulation.rendering_trunks import ICRP, PROTOCOL, TISSUES, person, plan, trunk
from tests.torso import SPACING

PERSON = person()
STILL = USUAL_CT.still(phase="portal")
CODE = {name: code for code, name in PROTOCOL.structures.items()}


def drawn(knobs: CTKnobs = STILL, seed: int = 0, **others: Any) -> Rendered:
    """The whole of the small trunk."""
    given = {"source": PERSON, "plan": plan(), "patch_size": None} | others
    return render(knobs=knobs, random=np.random.default_rng(seed), **given)


def middle(made: Rendered, name: str) -> float:
    """The median HU of a structure."""
    return float(made.image[0][made.label == CODE[name]].median())


# ---- what the codes are


def test_every_code_has_a_meaning_and_a_look() -> None:
    """The protocol's map and the tissues name the same codes, which are all of the phantoms'."""
    assert set(TISSUES.part_of) == set(ICRP) == set(range(141))
    assert {code for code, ours in ICRP.items() if ours == IGNORED} == {10}
    assert set(ICRP.values()) == {0, IGNORED, *PROTOCOL.structures} - {
        CODE["aorta"],
        CODE["inferior_vena_cava"],
    }


def test_what_cannot_be_told_is_ignored_in_patches_and_in_scans() -> None:
    """A vessel is neither background nor a structure, and no patch is centred on it."""
    vessels = (trunk() == 10).sum()
    patch = drawn().label
    scan, labels = renderer("abdominal_ct", STILL)(
        Volume(trunk(), np.diag([SPACING] * 3 + [1.0])), ICRP
    )(np.random.default_rng(0))
    assert (patch == IGNORED).sum() == pytest.approx(int(vessels), rel=0.02)
    assert (labels == IGNORED).sum() == pytest.approx(int(vessels), rel=0.02)
    assert scan.array.shape == labels.shape
    assert IGNORED not in PERSON.places[:, 0]
    assert CODE["liver"] in PERSON.places[:, 0]


# ---- how they look


def test_organs_are_as_bright_as_their_phase() -> None:
    """Kidney and spleen take contrast up, urine doesn't; air is -1000 HU, fat about -100."""
    by = {phase: drawn(replace(STILL, phase=phase)) for phase in ("native", "arterial", "portal")}
    spleen = {phase: middle(made, "spleen") for phase, made in by.items()}
    assert spleen["native"] == pytest.approx(ENHANCEMENT["spleen"][0], abs=8)
    assert spleen["arterial"] == pytest.approx(ENHANCEMENT["spleen"][1], abs=12)
    assert middle(by["portal"], "kidney_left") > middle(by["native"], "kidney_left") + 60
    assert middle(by["portal"], "liver") > middle(by["arterial"], "liver") + 15
    bladder = [middle(made, "urinary_bladder") for made in by.values()]
    assert np.ptp(bladder) < 25
    image = by["portal"].image[0]
    assert image[0, -1, 0] == -1000
    fat = image[(image > -200) & (image < -50)]
    assert -115 < float(fat.median()) < -85


def test_the_organs_of_both_simulations_are_one_table() -> None:
    """A rendered organ's HU are those that a simulated patient's are drawn from."""
    knobs = replace(STILL, organ_sd_hu=6.0, enhancement_sd=0.2, phase="mixed")
    kinds = [PERSON.tissues[tissue].name for tissue in PERSON.tissue]
    for seed in range(5):
        wanted = organ_hu("mixed", 6.0, 0.2, np.random.default_rng(seed))
        mean = in_hu(PERSON, knobs, np.random.default_rng(seed)).mean
        for name in ("spleen", "liver"):
            assert mean[kinds.index(name)] == pytest.approx(wanted[name])


def test_gas_rises_to_the_front() -> None:
    """The stomach holds gas in some scans, in front of what else it holds."""
    found = []
    for seed in range(12):
        made = drawn(seed=seed)
        _, gas, _ = torch.nonzero((made.label == CODE["stomach"]) & (made.image[0] < -500)).T
        _, rest, _ = torch.nonzero((made.label == CODE["stomach"]) & (made.image[0] > -100)).T
        if len(gas) > 5:
            found.append(float(gas.float().mean() - rest.float().mean()))
    assert 4 < len(found) < 12
    assert min(found) > 1.0


def test_drunk_contrast_fills_what_is_hollow() -> None:
    """With a chance of 1 it has reached the stomach in most scans, with a chance of 0 in none."""
    bright = []
    for share in (0.0, 1.0):
        knobs = replace(STILL, oral_contrast=share)
        made = [drawn(knobs, seed=seed) for seed in range(8)]
        inside = [one.image[0][one.label == CODE["stomach"]] for one in made]
        bright.append(sum(bool(values.quantile(0.9) > 110) for values in inside))
    assert bright[0] == 0
    assert bright[1] > 3


def test_arms_are_there_or_not() -> None:
    """Without arms there is air where they lie, and the field of view ends at the trunk."""
    there, gone = drawn(replace(STILL, arms=1.0)), drawn(replace(STILL, arms=0.0))
    assert there.label.shape[0] > gone.label.shape[0] + 10
    assert (there.label > 0).sum() == (gone.label > 0).sum()
    bone = [int((made.image > 450).sum()) for made in (there, gone)]
    assert bone[0] > bone[1] + 50


def test_a_table_lies_below_the_body() -> None:
    """It shows behind the body where there is air, and changes nothing else."""
    labels = Volume(trunk(), np.diag([SPACING] * 3 + [1.0]))
    knobs = replace(STILL, arms=0.0, margin_mm=(30.0, 30.0))
    bare, laid = (
        renderer("abdominal_ct", one, _grey)(labels, ICRP)(np.random.default_rng(0))
        for one in (knobs, replace(knobs, table=1.0, table_dip_mm=(0.0, 0.0)))
    )
    images = [nib.Nifti1Image(image.array, image.affine) for image, _ in (bare, laid)]
    before, after = (nib.as_closest_canonical(image).get_fdata() for image in images)
    changed = before != after
    assert changed.sum() > 500
    assert before[changed].max() < 0  # air, or a voxel that holds some
    assert np.nonzero(changed)[1].max() < 12
    assert after[changed].min() > -1000


def _grey(source: LabelMap, *_: Any) -> Brightness:
    mean = np.full(len(source.structure), 40.0)
    mean[0] = -1000.0
    return Brightness(mean, 0.0 * mean, 0.0 * mean)


def test_fat_grows_under_the_skin() -> None:
    """A larger fat_scale makes the body wider, and leaves the organs about their size."""
    widths, livers = [], []
    for scale in (0.6, 1.0, 1.7):
        made = drawn(replace(STILL, arms=0.0, fat_scale=(scale, scale)))
        widths.append(int((made.image[0] > -300).any(dim=1).any(dim=1).sum()))
        livers.append(int((made.label == CODE["liver"]).sum()))
    assert widths[0] < widths[1] < widths[2]
    assert max(livers) < 1.15 * min(livers)


def test_a_scan_holds_what_the_knobs_leave_of_the_body() -> None:
    """Both ends are cut by up to crop_mm, a short one is a slab, and every side has its air."""
    whole = drawn().label.shape[2] * SPACING
    lengths = [
        drawn(replace(STILL, crop_mm=(60.0, 40.0)), seed=seed).label.shape[2] * SPACING
        for seed in range(12)
    ]
    assert whole - 145 < min(lengths) < max(lengths) < whole - 15
    short = [
        drawn(replace(STILL, short=1.0, short_mm=(60.0, 90.0)), seed=seed).label.shape[2] * SPACING
        for seed in range(5)
    ]
    assert 50 < min(short) < max(short) < 100


def test_noise_is_added_and_slices_are_axial() -> None:
    """Noise has the knob's deviation in air, too; thick slices smooth the third axis alone."""
    still, noisy = drawn().image[0], drawn(replace(STILL, noise=(20.0, 20.0))).image[0]
    air = still == -1000
    assert float(noisy[air].std()) == pytest.approx(20.0, rel=0.1)
    assert float(noisy[air].mean()) == pytest.approx(-1000.0, abs=2.0)
    for seed in range(3):
        thick = drawn(replace(STILL, thick=1.0, thick_mm=(18.0, 18.0)), seed=seed).image[0]
        same = drawn(seed=seed).image[0]
        rough = [
            float(thick.diff(n=2, dim=a).abs().sum() / same.diff(n=2, dim=a).abs().sum())
            for a in range(3)
        ]
        assert rough[2] < 0.7 * min(rough[:2])


def test_an_unknown_code_looks_like_some_soft_tissue() -> None:
    """A code that no tissue lists is background of any brightness between fat and bone."""
    codes = trunk()
    codes[codes == 113] = 0
    codes[30:34, 20:24, 20:24] = 200
    source = person(codes)
    kinds = [source.tissues[tissue].name for tissue in source.tissue]
    means = [
        in_hu(source, STILL, np.random.default_rng(seed)).mean[kinds.index("unknown 200")]
        for seed in range(30)
    ]
    assert -120 <= min(means) < 0 < max(means) <= 150
    assert source.kept == PERSON.kept


# ---- everything at once


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(12, 60), st.integers(12, 44), st.integers(6, 44)),
    ratio=st.sampled_from([0.8, 1.0, 1.6, 3.0]),
    size=st.tuples(*[st.integers(1, 20)] * 3) | st.none(),
    seed=st.integers(0, 2**32),
)
def test_any_trunk_on_any_grid_is_a_patch_of_numbers(
    shape: tuple[int, int, int], ratio: float, size: tuple[int, int, int] | None, seed: int
) -> None:
    """Whatever is drawn, image and label have the patch's shape, and no value isn't a number."""
    codes = trunk(shape)
    codes[0, 0, 0] = 95
    made = drawn(
        USUAL_CT,
        seed=seed,
        source=person(codes),
        plan=plan(SPACING * ratio),
        patch_size=size,
        foreground_share=0.7,
    )
    assert made.image.shape == (1, *made.label.shape)
    assert size is None or made.label.shape == size
    assert torch.isfinite(made.image).all()
    assert set(made.label.unique().tolist()) <= {*range(12), IGNORED}


def test_the_same_state_gives_the_same_scan() -> None:
    """All randomness comes from the generator that is handed in."""
    one, two, other = (drawn(USUAL_CT, seed=seed, patch_size=(16, 16, 16)) for seed in (5, 5, 6))
    assert torch.equal(one.image, two.image)
    assert not torch.equal(one.image, other.image)


def test_a_trunk_is_read_as_it_was_written(tmp_path: Any) -> None:
    """Written and read again, loops, layers and ignored codes are the same."""
    PERSON.write(tmp_path / "someone")
    again = LabelMap.read(tmp_path / "someone")
    assert again.tissues == PERSON.tissues
    assert again.structure == PERSON.structure
    assert {tissue.height for tissue in again.tissues} > {0.0}


# ---- knobs


def test_knobs_of_the_modality_come_from_parameters() -> None:
    """CT has knobs of its own, and MR's are none of them."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(USUAL_CT).items()}
    assert build(CTKnobs, values, "params.yaml", "rendering") == USUAL_CT
    with pytest.raises(SegdistillError, match=r"rendering\.ventricle_scale is no knob"):
        build(CTKnobs, {**values, "ventricle_scale": [1.0, 1.0]}, "params.yaml", "rendering")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"fat_scale": (0.0, 1.0)}, "above 0"),
        ({"table": 2.0}, "0 to 1"),
        ({"noise": (2.0, 1.0)}, "low to high"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    """A knob's mistake is named."""
    with pytest.raises(ValueError, match=says):
        replace(USUAL_CT, **wrong)
