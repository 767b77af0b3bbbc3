"""The plan from the training split, and the prepared cases."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdistill.files import SegdistillError, read_json
from segdistill.runtime.plan import Plan
from segdistill.simulation.mri import CohortKnobs, SiteKnobs
from segdistill.simulation.rendering.making import write_person
from segdistill.simulation.rendering.whole import renderer
from segdistill.simulation.simulate import simulate_site
from segdistill.sites.manifest import Case, Site, read_sites
from segdistill.sites.prepare import PlanKnobs, index_row, make_plan, prepare, prepare_case, usable_cases
from segdistill.sites.protocol import read_protocol
from segdistill.volume import read_label_map, write_volume
from tests.phantom import phantom_anatomy

WRITE = partial(write_person, task="brain_mri")
KNOBS = PlanKnobs(
    modality="mri",
    orientation="RAS",
    spacing_mm=(6.0, 6.0, 6.0),
    foreground="above_mean",
    normalisation="zscore",
    patch_size=(32, 32, 32),
    mode="windows",
    overlap=0.5,
)
PEOPLE = CohortKnobs(4.0, 24.0, 0.02, 3.0, (0.9, 1.2), 0.5, 2.0, 0.1)
SCANNER = SiteKnobs(
    subjects=4,
    split=(2, 1, 1),
    held_out=False,
    voxel_mm=(5.0, 5.0, 5.0),
    orientation="RAS",
    contrast=1.0,
    gamma=1.0,
    bias=0.1,
    noise=0.02,
    blur_mm=0.5,
    skull=True,
    crop_mm=0.0,
    neck_mm=(0.0, 0.0),
    trim_mm=0.0,
)

Sites = list[tuple[Path, Site]]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """Two seen sites that store their axes differently, and one that is held out."""
    folder = tmp_path_factory.mktemp("cohort")
    anatomy = phantom_anatomy(folder / "anatomy", size=32)
    kinds = {
        "near": SCANNER,
        "far": replace(SCANNER, voxel_mm=(4.0, 5.0, 8.0), orientation="PSR"),
        "outside": replace(
            SCANNER, subjects=2, split=(0, 0, 2), held_out=True, voxel_mm=(3.0, 3.0, 3.0)
        ),
    }
    for name, kind in kinds.items():
        simulate_site(anatomy, name, kind, PEOPLE, task="brain_mri", seed=1, out=folder / "sites" / name)
    return list(read_sites(folder / "sites"))


def plan_of(sites: Sites, **knobs: Any) -> Plan:
    """The plan with some knobs changed."""
    return make_plan(
        sites,
        replace(KNOBS, **knobs),
        task="brain_mri",
        stem_stride=2,
        stages=4,
        render=partial(renderer, "brain_mri"),
    )


def test_only_train_and_val_cases_of_seen_sites_are_used(sites: Sites) -> None:
    """Neither a test case nor any case of a held-out site gets into the prepared data."""
    used = usable_cases(sites)
    assert [(entry.site.site, entry.case.split) for entry in used] == [
        (name, split) for name in ("far", "near") for split in ("train", "train", "val")
    ]


def test_a_case_without_a_label_is_for_training_alone(sites: Sites, tmp_path: Path) -> None:
    """An unlabelled training case is prepared without a label; an unlabelled val case isn't used."""
    folder, site = sites[0]
    train, val = site.cases[0], next(case for case in site.cases if case.split == "val")
    bare = replace(
        site,
        cases=tuple(replace(case, label=None) if case in (train, val) else case for case in site.cases),
    )
    index = prepare([(folder, bare), *sites[1:]], plan_of(sites), tmp_path / "out", WRITE)
    labelled = {entry["case"]: entry["labelled"] for entry in index}
    assert val.case not in labelled
    assert [name for name, known in labelled.items() if not known] == [train.case]
    assert (tmp_path / "out" / f"{train.case}.image.npy").is_file()
    assert not (tmp_path / "out" / f"{train.case}.label.npy").exists()


def test_no_training_case_is_an_error(sites: Sites) -> None:
    """Sites that are all held out give an error that says which split is empty."""
    with pytest.raises(SegdistillError, match="'train'"):
        usable_cases([entry for entry in sites if entry[1].held_out])


def test_the_plan_follows_params_and_the_manifests(sites: Sites) -> None:
    """Knobs, structures and protocol arrive in the plan, and the divisor fits stem and stages."""
    plan = plan_of(sites)
    assert plan.size_divisor == (16, 16, 16)
    assert plan.spacing_mm == (6.0, 6.0, 6.0)
    assert {entry.code: entry.name for entry in plan.structures} == sites[0][1].structures
    assert plan.label_protocol == read_protocol("brain_mri").name
    assert plan.normalisation.scheme == "zscore"


def test_spacing_null_is_the_median_of_the_training_split(sites: Sites) -> None:
    """The median follows the plan's axes whatever order a site stores, and ignores held-out sites."""
    only_far = [entry for entry in sites if entry[1].site == "far"]
    assert plan_of(only_far, spacing_mm=None).spacing_mm == (4.0, 5.0, 8.0)
    assert plan_of(only_far, spacing_mm=None, orientation="SAL").spacing_mm == (8.0, 5.0, 4.0)
    assert plan_of(sites, spacing_mm=None).spacing_mm == (4.5, 5.0, 6.5)


def ct_site(folder: Path, values: dict[str, np.ndarray]) -> Sites:
    """A site whose cases hold given HU in their labelled half and -1000 elsewhere."""
    (folder / "ct").mkdir(parents=True)
    cases = []
    for split, inside in values.items():
        image = np.full((8, 8, 2 * inside.size // 64), -1000, np.int16)
        label = np.zeros(image.shape, np.uint8)
        half = image.shape[2] // 2
        image[:, :, :half] = inside.reshape(8, 8, half)
        label[:, :, :half] = 1
        write_volume(folder / "ct" / f"{split}.nii", image, np.eye(4))
        write_volume(folder / "ct" / f"{split}-label.nii", label, np.eye(4))
        cases.append(Case(split, split, f"{split}.nii", f"{split}-label.nii", split))  # type: ignore[arg-type]
    site = Site("ct", "abdomen_ct", False, False, "liver", {1: "liver"}, tuple(cases))
    site.write(folder / "ct")
    return list(read_sites(folder))


def test_ct_statistics_are_those_of_labelled_training_voxels(tmp_path: Path) -> None:
    """Percentiles, mean and deviation come from the training split's labelled voxels alone."""
    random = np.random.default_rng(0)
    inside = random.integers(-50, 200, 64 * 40)
    values = {"train": inside, "val": inside + 5000, "test": inside + 9000}
    sites = ct_site(tmp_path, values)
    how = plan_of(sites, normalisation="ct", modality="ct").normalisation
    assert how.clip_hu == pytest.approx(tuple(np.percentile(inside, [0.5, 99.5])))
    assert how.mean_hu == pytest.approx(inside.mean(), rel=1e-2)
    assert how.std_hu == pytest.approx(inside.std(), rel=1e-2)


def test_ct_statistics_need_labelled_voxels(tmp_path: Path) -> None:
    """A training split whose label maps are empty is refused, not divided by zero."""
    sites = ct_site(tmp_path, {"train": np.arange(64 * 4), "val": np.arange(64 * 4)})
    empty = replace(sites[0][1], structures={9: "spleen"})
    with pytest.raises(SegdistillError, match="no labelled voxel"):
        plan_of([(sites[0][0], empty)], normalisation="ct", modality="ct")


def test_a_plan_that_makes_no_sense_is_refused(sites: Sites) -> None:
    """A patch that the networks can't take is named with its file."""
    with pytest.raises(SegdistillError, match=r"params\.yaml: plan.*patch_size"):
        plan_of(sites, patch_size=(30, 32, 32))


def test_sites_of_two_protocols_are_refused(sites: Sites) -> None:
    """One plan has one label protocol."""
    other = replace(sites[0][1], label_protocol="another")
    with pytest.raises(SegdistillError, match="another"):
        plan_of([(sites[0][0], other), *sites[1:]])


def test_prepared_cases_are_what_the_networks_read(sites: Sites, tmp_path: Path) -> None:
    """Every case is float16 and uint8 on one grid, normalised, with all structures as channels."""
    plan, told = plan_of(sites), []
    index = prepare(sites, plan, tmp_path / "out", WRITE, lambda done, total: told.append((done, total)))
    assert index == read_json(tmp_path / "out" / "index.json")
    assert [entry["case"] for entry in index] == [entry.case.case for entry in usable_cases(sites)]
    assert told[-1] == (6, 6)
    for entry in index:
        image = np.load(tmp_path / "out" / f"{entry['case']}.image.npy", allow_pickle=False)
        label = np.load(tmp_path / "out" / f"{entry['case']}.label.npy", allow_pickle=False)
        assert (image.dtype, label.dtype) == (np.float16, np.uint8)
        assert image.shape == (1, *entry["shape"])
        assert list(label.shape) == entry["shape"]
        assert set(np.unique(label)) == set(range(plan.channels_out))
        inside, air = (
            float(image[0][where].astype(np.float32).mean()) for where in (label > 0, label == 0)
        )
        assert air < -1 < inside < 1


def test_a_case_is_prepared_alone_as_among_others(sites: Sites, tmp_path: Path) -> None:
    """One case gives the bytes that it has among all others, and writes nothing."""
    plan = plan_of(sites)
    index = prepare(sites, plan, tmp_path / "out", WRITE)
    for entry, row in zip(usable_cases(sites), index, strict=True):
        alone = prepare_case(entry, plan)
        name = tmp_path / "out" / entry.case.case
        assert alone.image.tobytes() == np.load(f"{name}.image.npy").tobytes()
        assert alone.label.tobytes() == np.load(f"{name}.label.npy").tobytes()
        assert index_row(entry, alone) == row
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_little_of_a_structure_is_lost_on_the_way(sites: Sites, tmp_path: Path) -> None:
    """Cropping and resampling keep every large structure's volume within 10 %."""
    plan = plan_of(sites, spacing_mm=[4.0, 4.0, 4.0])
    prepare(sites, plan, tmp_path / "out", WRITE)
    for entry in usable_cases(sites):
        before = read_label_map(entry.label)
        after = np.load(tmp_path / "out" / f"{entry.case.case}.label.npy", allow_pickle=False)
        for code in (1, 3, 4, 9):
            old = float((before.array == code).sum() * np.prod(before.spacing_mm))
            new = float((after == plan.codes.index(code)).sum() * np.prod(plan.spacing_mm))
            assert new == pytest.approx(old, rel=0.1)


def test_a_label_on_another_grid_stops_all(sites: Sites, tmp_path: Path) -> None:
    """A label map that isn't on its scan's grid is named, and nothing half-prepared is left."""
    folder, site = sites[0]
    swapped = replace(site.cases[0], label=site.cases[1].label)
    wrong = [(folder, replace(site, cases=(swapped, *site.cases[1:])))]
    with pytest.raises(SegdistillError, match=r"far-002\.nii.*not on the grid of .*far-001\.nii"):
        prepare(wrong, plan_of(sites), tmp_path / "out", WRITE)
    assert not list(tmp_path.iterdir())
