"""Simulated sites: seeded, complete, geometrically right, and every knob acts."""

import errno
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.params import build
from segdistill.simulation import simulate
from segdistill.simulation.anatomy import Anatomy
from segdistill.simulation.mri import (
    CohortKnobs,
    Head,
    SiteKnobs,
    draw_subject,
    scan,
    scan_grid,
    tissue_means,
)
from segdistill.simulation.people import Grid, template_coordinates
from segdistill.simulation.simulate import simulate_site
from segdistill.sites.manifest import Site
from segdistill.volume import Volume, read_label_map, read_volume, same_grid
from tests.phantom import phantom_anatomy

ROOT = Path(__file__).parents[2]
STILL = CohortKnobs(
    warp_mm=0.0,
    warp_scale_mm=24.0,
    scale_sd=0.0,
    rotate_sd_deg=0.0,
    ventricle_scale=(1.0, 1.0),
    cortex_shift_mm=0.0,
    tissue_sd=0.0,
    contrast_sd=0.0,
)
PEOPLE = replace(
    STILL,
    warp_mm=6.0,
    scale_sd=0.05,
    rotate_sd_deg=5.0,
    ventricle_scale=(0.8, 1.7),
    cortex_shift_mm=1.0,
    tissue_sd=4.0,
    contrast_sd=0.15,
)
SITE = SiteKnobs(
    subjects=3,
    split=(1, 1, 1),
    held_out=False,
    voxel_mm=(5.0, 5.0, 5.0),
    orientation="RAS",
    contrast=1.0,
    gamma=1.0,
    bias=0.0,
    noise=0.0,
    blur_mm=0.0,
    skull=True,
    crop_mm=0.0,
    neck_mm=(0.0, 0.0),
    trim_mm=0.0,
)


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    """The phantom."""
    return phantom_anatomy(tmp_path_factory.mktemp("anatomy"), size=32)


@pytest.fixture(scope="module")
def template(anatomy: Anatomy) -> Head:
    """What all subjects share."""
    return Head(anatomy)


def made(
    anatomy: Anatomy, out: Path, name: str = "here", cohort: CohortKnobs = PEOPLE, **knobs: Any
) -> Site:
    """Simulate a small site with some knobs changed."""
    return simulate_site(anatomy, name, replace(SITE, **knobs), cohort, task="toy", seed=7, out=out)


def scanned(
    template: Head, cohort: CohortKnobs = STILL, seed: int = 3, **knobs: Any
) -> tuple[NDArray[np.float64], NDArray[np.uint8], Grid]:
    """One subject's scan with some knobs changed, white matter brought to 1."""
    site, rng = replace(SITE, **knobs), np.random.default_rng(seed)
    subject = draw_subject(template, cohort, rng)
    grid = scan_grid(template, subject, site, rng)
    image, labels = scan(template, subject, grid, site, cohort, rng)
    return image / np.median(image[labels == 4]), labels, grid


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(anatomy: Anatomy, tmp_path: Path) -> None:
    """Two runs agree in every byte of every file, and subjects differ from each other."""
    knobs = {"bias": 0.3, "noise": 0.05, "blur_mm": 1.0, "crop_mm": 20.0, "orientation": "PSR"}
    made(anatomy, tmp_path / "one", **knobs)
    made(anatomy, tmp_path / "two", **knobs)
    first = bytes_of(tmp_path / "one")
    assert first == bytes_of(tmp_path / "two")
    assert len(set(first.values())) == len(first) == 7


def test_a_subject_does_not_depend_on_what_else_is_made(anatomy: Anatomy, tmp_path: Path) -> None:
    """A subject is the same whether its site has three subjects or two; another site's differ."""
    made(anatomy, tmp_path / "three")
    made(anatomy, tmp_path / "two", subjects=2, split=(1, 0, 1))
    made(anatomy, tmp_path / "other", name="there")
    three, two = bytes_of(tmp_path / "three"), bytes_of(tmp_path / "two")
    assert two["images/here-002.nii"] == three["images/here-002.nii"]
    assert bytes_of(tmp_path / "other")["images/there-001.nii"] != three["images/here-001.nii"]


def test_another_seed_gives_other_people(anatomy: Anatomy, tmp_path: Path) -> None:
    """The pipeline's seed reaches the subjects."""
    made(anatomy, tmp_path / "seven")
    simulate_site(anatomy, "here", SITE, PEOPLE, task="toy", seed=8, out=tmp_path / "eight")
    case = "images/here-001.nii"
    assert bytes_of(tmp_path / "seven")[case] != bytes_of(tmp_path / "eight")[case]


def test_the_manifest_says_what_it_is(anatomy: Anatomy, tmp_path: Path) -> None:
    """The manifest says that the site is simulated, splits by subject as asked, and lists real files."""
    made(anatomy, tmp_path / "here", subjects=5, split=(2, 1, 2))
    site = Site.read(tmp_path / "here")
    assert site.simulated
    assert "SIMULATED" in site.note
    assert [case.split for case in site.cases] == ["train"] * 2 + ["val"] + ["test"] * 2
    assert len({case.subject for case in site.cases}) == 5
    assert site.structures == anatomy.structures
    for case in site.cases:
        image = read_volume(tmp_path / "here" / case.image)
        label = read_label_map(tmp_path / "here" / str(case.label))
        assert same_grid(image, label)
        assert set(np.unique(label.array)) == {0, *anatomy.structures}


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "LAS", "AIL"])
def test_the_stored_orientation_changes_no_place(
    anatomy: Anatomy, tmp_path: Path, orientation: str
) -> None:
    """However a site stores its axes, every structure lies at the same place in mm."""
    made(anatomy, tmp_path / "plain", voxel_mm=(4.0, 5.0, 6.0))
    made(anatomy, tmp_path / "turned", voxel_mm=(4.0, 5.0, 6.0), orientation=orientation)
    plain = read_label_map(tmp_path / "plain" / "labels" / "here-001.nii")
    turned = read_label_map(tmp_path / "turned" / "labels" / "here-001.nii")
    assert turned.orientation == orientation
    assert sorted(turned.spacing_mm) == pytest.approx([4.0, 5.0, 6.0])
    for code in anatomy.structures:
        assert centre_mm(turned, code) == pytest.approx(centre_mm(plain, code), abs=1e-3)


def centre_mm(label: Volume, code: int) -> NDArray[np.float64]:
    """Where a structure's centre of mass is, RAS mm."""
    voxel = np.argwhere(label.array == code).mean(axis=0)
    return np.asarray(label.affine[:3, :3] @ voxel + label.affine[:3, 3])


@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    voxel_mm=st.tuples(*[st.floats(3.0, 8.0)] * 3),
    orientation=st.sampled_from(["RAS", "LPI", "PSR", "SLA"]),
    seed=st.integers(0, 1000),
)
def test_a_person_who_is_the_template_lies_where_the_template_lies(
    template: Head, voxel_mm: tuple[float, float, float], orientation: str, seed: int
) -> None:
    """Without warps, a scan of any voxel size and orientation has the structures in place (mm)."""
    site, rng = replace(SITE, voxel_mm=voxel_mm), np.random.default_rng(seed)
    subject = draw_subject(template, STILL, rng)
    grid = scan_grid(template, subject, site, rng)
    labels = scan(template, subject, grid, site, STILL, rng)[1]
    head = Volume(template.anatomy.labels, template.anatomy.affine)
    with tempfile.TemporaryDirectory() as folder:
        simulate._write(Path(folder) / "turned.nii", labels, grid, orientation)
        stored = read_label_map(Path(folder) / "turned.nii")
    assert stored.orientation == orientation
    for code in (2, 3, 4, 5, 9):  # a pair's common centre says little: it jumps with a voxel of one side
        assert centre_mm(stored, code) == pytest.approx(centre_mm(head, code), abs=3.0)


@pytest.mark.parametrize("seed", range(6))
def test_warps_never_fold(template: Head, seed: int) -> None:
    """At the demo's strength a warp keeps neighbours in order: its Jacobian is positive everywhere."""
    subject = draw_subject(template, PEOPLE, np.random.default_rng(seed))
    grid = Grid((64, 64, 64), (3.0, 3.0, 3.0), (-94.5, -94.5, -94.5))
    at = template_coordinates(template, subject, grid)
    slopes = np.stack([np.stack(np.gradient(axis)) for axis in at], axis=-1)
    assert np.linalg.det(np.moveaxis(slopes, 0, -1)).min() > 0


def volume_ml(template: Head, code: int, **knobs: Any) -> float:
    """Volume of a structure in a finely scanned subject."""
    labels, grid = scanned(template, replace(STILL, **knobs), voxel_mm=(3.0, 3.0, 3.0))[1:]
    return float((labels == code).sum() * np.prod(grid.voxel_mm) / 1000)


def test_the_ventricles_scale(template: Head) -> None:
    """A ventricle scale s gives about s^3 of the template's ventricles, and leaves the thalamus."""
    template_ml = float((template.anatomy.labels == 2).sum()) * template.spacing**3 / 1000
    for scale in (0.8, 1.0, 1.2):
        ml = volume_ml(template, 2, ventricle_scale=(scale, scale))
        assert (ml / template_ml) ** (1 / 3) == pytest.approx(scale, abs=0.07)
    thick, thin = (volume_ml(template, 5, ventricle_scale=(s, s)) for s in (0.8, 1.2))
    assert thick == pytest.approx(thin, rel=0.3)


def test_the_cortex_thickens_and_thins(template: Head) -> None:
    """Cortex grows and white matter gives way, or the reverse, by the drawn shift, if any."""
    changes = []
    for seed in range(6):
        subject = draw_subject(
            template, replace(STILL, cortex_shift_mm=2.0), np.random.default_rng(seed)
        )
        grown = int((subject.labels == 3).sum()) - int((template.anatomy.labels == 3).sum())
        given_way = int((template.anatomy.labels == 4).sum()) - int((subject.labels == 4).sum())
        assert grown == given_way
        assert grown * subject.cortex_shift_mm >= 0
        changes.append(grown)
    assert min(changes) < 0 < max(changes)
    same = draw_subject(template, STILL, np.random.default_rng(0))
    assert np.array_equal(same.labels, template.anatomy.labels)


@pytest.mark.parametrize(
    ("knob", "small", "large", "measure"),
    [
        ("warp_mm", 2.0, 8.0, lambda s: np.sqrt((s.flow**2).sum(0).mean())),
        ("scale_sd", 0.01, 0.2, lambda s: np.abs(np.log(s.scale)).max()),
        ("rotate_sd_deg", 1.0, 20.0, lambda s: np.arccos((np.trace(s.rotation) - 1) / 2)),
        ("warp_scale_mm", 60.0, 15.0, lambda s: np.abs(np.diff(s.flow, axis=1)).mean()),
    ],
)
def test_knobs_of_people_act(
    template: Head, knob: str, small: float, large: float, measure: Callable[[Any], float]
) -> None:
    """More of a knob of 'cohort' makes people differ more in just that."""
    base = replace(STILL, warp_mm=4.0 if knob == "warp_scale_mm" else 0.0)
    low, high = (
        measure(draw_subject(template, replace(base, **{knob: value}), np.random.default_rng(1)))
        for value in (small, large)
    )
    assert high > 1.5 * low > 0


def test_warp_mm_is_the_root_mean_square_shift(template: Head) -> None:
    """Over people, the root mean square of the shift is what the knob says, in mm."""
    knobs = replace(STILL, warp_mm=5.0, warp_scale_mm=20.0)
    flows = [draw_subject(template, knobs, np.random.default_rng(seed)).flow for seed in range(8)]
    assert np.sqrt(np.mean([(flow**2).sum(0).mean() for flow in flows])) == pytest.approx(5.0, rel=0.15)


def grey_white(image: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    """Grey matter's brightness for white matter of 1."""
    return float(np.median(image[labels == 3]))


def test_contrast_moves_grey_from_white(template: Head) -> None:
    """Less contrast brings grey and white matter nearer, more takes them apart."""
    low, mid, high = (grey_white(*scanned(template, contrast=c)[:2]) for c in (0.6, 1.0, 1.4))
    assert low > mid + 0.03 > high + 0.06


def test_gamma_bends_the_curve(template: Head) -> None:
    """A higher gamma darkens what is darker than white matter."""
    low, high = (grey_white(*scanned(template, gamma=g)[:2]) for g in (0.7, 1.5))
    assert low > high + 0.1


def test_bias_shades(template: Head) -> None:
    """Shading spreads white matter's brightness by about the standard deviation asked for."""
    spreads = []
    for bias in (0.0, 0.2, 0.4):
        image, labels, _ = scanned(template, bias=bias)
        spreads.append(float(np.log(image[ndimage.binary_erosion(labels == 4)]).std()))
    assert spreads[0] < 0.06
    assert spreads[0] + 0.05 < spreads[1] < spreads[2] - 0.05
    assert spreads[2] < 0.6


def test_noise_is_rician_and_of_the_size_asked_for(template: Head) -> None:
    """Noise has the asked-for deviation in white matter, and in air the mean of a Rayleigh variable."""
    clean, labels, grid = scanned(template)
    noisy, again, _ = scanned(template, noise=0.05)
    assert np.array_equal(labels, again)
    white = ndimage.binary_erosion(labels == 4)
    assert (noisy - clean)[white].std() == pytest.approx(0.05, rel=0.2)
    air = clean == 0
    assert air.sum() > 1000
    assert noisy[air].mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.2)
    assert grid.shape == noisy.shape


def test_blur_acts_in_plane_only(template: Head) -> None:
    """Blur softens left-right and front-back steps and leaves the slices apart."""
    sharp, soft = scanned(template)[0], scanned(template, blur_mm=5.0)[0]
    in_plane = [np.abs(np.diff(image, axis=0)).max() for image in (sharp, soft)]
    assert in_plane[1] < 0.8 * in_plane[0]
    slices = [image.sum(axis=(0, 1)) / image.sum() for image in (sharp, soft)]
    assert slices[1] == pytest.approx(slices[0], abs=1e-3)


def test_thick_slices_average_what_is_in_them(template: Head) -> None:
    """A thick slice is the mean of the three thin ones in it (partial volume), not one of them."""
    rng = [np.random.default_rng(5) for _ in range(2)]
    subject = [draw_subject(template, STILL, r) for r in rng]
    thin = Grid((28, 28, 24), (6.0, 6.0, 6.0), (-80.0, -80.0, -70.0))
    thick = Grid((28, 28, 8), (6.0, 6.0, 18.0), (-80.0, -80.0, -64.0))
    fine = scan(template, subject[0], thin, SITE, STILL, rng[0])[0].astype(float)
    coarse = scan(template, subject[1], thick, SITE, STILL, rng[1])[0]
    mean = fine.reshape(28, 28, 8, 3).mean(axis=3)
    mean *= coarse.sum() / mean.sum()  # each scan has a gain of its own
    assert coarse == pytest.approx(mean, abs=1.5)


def test_skull_false_leaves_only_the_brain(template: Head) -> None:
    """A skull-stripped site is zero outside the brain and a little around it, and keeps the brain."""
    image, labels, _ = scanned(template, skull=False, noise=0.05)
    near = ndimage.binary_dilation(labels > 0, iterations=2)
    assert not image[~near].any()
    assert (image[labels > 0] > 0).mean() > 0.95
    assert (scanned(template, skull=True, noise=0.05)[0][~near] > 0).mean() > 0.9


def test_the_crop_cuts_from_below_only(template: Head) -> None:
    """The field of view loses up to crop_mm below and nothing above; other seeds cut other amounts."""
    cuts = []
    for seed in range(5):
        full, cropped = (scanned(template, seed=seed, crop_mm=c)[2] for c in (0.0, 40.0))
        cuts.append(cropped.origin_mm[2] - full.origin_mm[2])
        top = [grid.origin_mm[2] + grid.shape[2] * 5.0 for grid in (full, cropped)]
        assert top[1] == pytest.approx(top[0], abs=5.0)
        assert full.origin_mm[:2] == cropped.origin_mm[:2]
    assert all(0 <= cut <= 40 for cut in cuts)
    assert max(cuts) > min(cuts) + 5


def test_the_neck_is_background_below_the_brain(anatomy: Anatomy) -> None:
    """A field of view of 80 mm of neck holds tissue of varying brightness there, and no label."""
    longer = Head.with_neck(anatomy)
    bottom = float(anatomy.affine[2, 3]) - 5.0
    brightness = []
    for seed in range(4):
        image, labels, grid = scanned(longer, seed=seed, neck_mm=(80.0, 80.0))
        below = int((bottom - grid.origin_mm[2]) / grid.voxel_mm[2])
        assert 13 <= below <= 18
        assert not labels[:, :, :below].any()
        assert labels[:, :, below:].any()
        tissue = image[:, :, :below][image[:, :, :below] > 0.1]
        assert tissue.size > 0.1 * image[:, :, :below].size
        assert tissue.std() > 0.1
        brightness.append(float(np.median(tissue)))
    assert max(brightness) > min(brightness) + 0.05


def test_neck_mm_is_how_far_a_scan_reaches(anatomy: Anatomy) -> None:
    """The field of view reaches neck_mm below the template, and lengthening moves no structure."""
    longer = Head.with_neck(anatomy)
    short, long = (scanned(longer, neck_mm=(mm, mm))[2] for mm in (0.0, 60.0))
    assert short.origin_mm[2] - long.origin_mm[2] == pytest.approx(60.0, abs=0.01)
    plain = Volume(anatomy.labels, anatomy.affine)
    grown = Volume(longer.anatomy.labels, longer.anatomy.affine)
    for code in anatomy.structures:
        assert centre_mm(grown, code) == pytest.approx(centre_mm(plain, code), abs=1e-6)


def test_trim_mm_cuts_or_adds_at_the_other_sides(template: Head) -> None:
    """Each of the five other sides moves in or out by at most trim_mm, and the lower side stays."""
    moves = []
    for seed in range(6):
        full, trimmed = (scanned(template, seed=seed, trim_mm=t)[2] for t in (0.0, 20.0))
        assert trimmed.origin_mm[2] == full.origin_mm[2]
        moves += [trimmed.origin_mm[a] - full.origin_mm[a] for a in range(2)]
    assert max(np.abs(moves)) <= 20.0
    assert min(moves) < -3.0 < 3.0 < max(moves)


def test_heads_differ_between_people_and_brains_keep_their_place(template: Head) -> None:
    """People on one template have the same brain labels and much different heads around them."""
    inside, quartiles = [], []
    for seed in range(6):
        image, labels, _ = scanned(template, seed=seed, voxel_mm=(6.0, 6.0, 6.0))
        inside.append(int((labels > 0).sum()))
        quartiles.append(np.percentile(image[(labels == 0) & (image > 0.1)], [25, 50, 75]))
    assert max(inside) < 1.05 * min(inside)
    assert np.ptp(quartiles, axis=0).max() > 0.1


def test_tissue_knobs_spread_the_means() -> None:
    """tissue_sd moves the deep structures, contrast_sd the cortex; grey matter stays below white."""

    def spread(code: int, **knobs: float) -> float:
        people = [
            tissue_means(SITE, replace(STILL, **knobs), np.random.default_rng(seed))
            for seed in range(40)
        ]
        assert all(0.5 < mean[3] / mean[4] < 0.9 for mean in people)
        assert all(0.05 < mean[1] / mean[4] < 0.45 for mean in people)
        return float(np.std([mean[code] / mean[4] for mean in people]))

    assert spread(8) == spread(3) == 0.0
    assert spread(8, tissue_sd=4.0) > 0.03
    assert spread(3, contrast_sd=0.15) > 0.02


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": [1, 1, 2]}, "adds up to 4"),
        ({"held_out": True}, "test cases only"),
        ({"voxel_mm": [0, 1, 1]}, "voxel_mm"),
        ({"orientation": "RAR"}, "orientation"),
        ({"neck_mm": [0.0, 120.0]}, "neck_mm"),
        ({"colour": 1}, "is no knob"),
    ],
)
def test_senseless_site_knobs_are_refused(change: dict[str, Any], says: str) -> None:
    """A site that contradicts itself is refused with the line of params.yaml it is in."""
    values = vars(SITE) | {"split": [1, 1, 1], "voxel_mm": [2, 2, 2], "neck_mm": [0, 0]} | change
    with pytest.raises(SegdistillError, match=f"sites.x.*{says}"):
        build(SiteKnobs, values, "params.yaml", "sites", "x")


@pytest.mark.parametrize("params", ["params.yaml"])
def test_the_projects_own_parameters_hold(params: str) -> None:
    """The committed parameters describe at least 60 subjects on 5 sites, one of them held out."""
    values = yaml.safe_load((ROOT / params).read_text())
    build(CohortKnobs, values["cohort"], params)
    sites = [build(SiteKnobs, site, name) for name, site in values["sites"].items()]
    assert len(sites) >= 5
    assert sum(site.subjects for site in sites) >= 60
    assert sum(site.held_out for site in sites) == 1
    assert any(max(site.voxel_mm) >= 2 * min(site.voxel_mm) for site in sites)
    assert any(site.voxel_mm == (1.0, 1.0, 1.0) and site.neck_mm[1] > 0 for site in sites)
    assert len({site.orientation for site in sites}) > 1


def test_a_full_disk_leaves_nothing(
    anatomy: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up at the second subject is named, and no half site stays behind."""
    opened, written = Path.open, []

    def fills_up(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if "w" in mode:
            written.append(path)
            if len(written) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", fills_up)
    with pytest.raises(SegdistillError, match="the disk is full"):
        made(anatomy, tmp_path / "sites" / "here")
    assert len(written) > 2
    assert not list((tmp_path / "sites").iterdir())


def test_an_older_site_survives_a_failure(
    anatomy: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When making a site anew fails, the one that was there stays as it was."""
    made(anatomy, tmp_path / "here")
    before = bytes_of(tmp_path / "here")

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "_write", broken)
    with pytest.raises(KeyboardInterrupt):
        made(anatomy, tmp_path / "here")
    assert bytes_of(tmp_path / "here") == before
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_progress_is_told(anatomy: Anatomy, tmp_path: Path) -> None:
    """Progress is reported after every subject, up to the last."""
    told: list[tuple[int, int]] = []
    simulate_site(
        anatomy,
        "here",
        SITE,
        STILL,
        task="toy",
        seed=1,
        out=tmp_path / "here",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
