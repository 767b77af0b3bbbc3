"""Label maps of people without scans: imported, prepared, and trained on."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.files import SegdistillError, read_json
from segdistill.simulation.rendering.knobs import USUAL
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.making import write_person
from segdistill.simulation.rendering.whole import renderer
from segdistill.sites.imports.scan import ImportProblemsError
from segdistill.sites.imports.site import Added, Request, add_site
from segdistill.sites.manifest import Site, read_sites
from segdistill.sites.prepare import PlanKnobs, make_plan, prepare
from segdistill.training.launch import run_here
from segdistill.training.patches import PatchSampler, People, read_cases, read_people
from segdistill.volume import Volume, grid_difference, read_label_map, read_volume
from tests.simulation.rendering_heads import PROTOCOL, flat, head
from tests.training.toy import DISTILLATION, NETWORK, TRAINING, toy_job

VOXEL_MM = 4.0
RENDER = renderer("brain_mri")


def save(path: Path, codes: np.ndarray, edges: tuple[float, float, float] = (VOXEL_MM,) * 3) -> Path:
    """A label map as its owner stores it, axes left, inferior, anterior."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = -edges[0], -edges[1], edges[2], 1.0
    nib.save(nib.Nifti1Image(codes[::-1, :, ::-1].transpose(0, 2, 1).astype(np.int16), affine), path)
    return path


def source(folder: Path, people: int = 6) -> Path:
    """Label maps of people who differ by a voxel of skin."""
    for number in range(people):
        codes = head()
        codes[codes == 999] = 507
        codes[0, 0, number] = 511
        save(folder / f"person_{number}.nii.gz", codes)
    return folder


def added(tmp_path: Path, **changes: Any) -> Added:
    """The maps as a site."""
    request = Request(
        "maps", source(tmp_path / "from"), tmp_path / "root", layout="labelmaps", scans=2, **changes
    )
    return add_site(request, render=RENDER)


def test_label_maps_become_a_site_with_scans_where_scans_are_needed(tmp_path: Path) -> None:
    """Train keeps the maps in their own codes; val and test get scans, of which each has its labels."""
    done = added(tmp_path, fractions=(0.5, 0.2, 0.3))
    (folder, site), *others = read_sites(done.folder.parent)
    assert not others
    assert site.simulated
    assert "RENDERED" in site.note
    assert site.source_codes[507] == 0
    assert site.source_codes[17] == PROTOCOL.freesurfer[17]
    by_split = {split: [c for c in site.cases if c.split == split] for split in ("train", "val", "test")}
    assert {split: len(cases) for split, cases in by_split.items()} == {"train": 3, "val": 2, "test": 4}
    assert len({case.subject for case in site.cases}) == 6
    for case in by_split["train"]:
        assert case.image is None
        assert case.label is not None
        assert set(np.unique(read_label_map(folder / case.label).array)) == set(site.source_codes)
    for case in (*by_split["val"], *by_split["test"]):
        assert case.label is not None
        scan, labels = read_volume(folder / case.scan), read_label_map(folder / case.label)
        assert not grid_difference(scan, labels)
        assert set(np.unique(labels.array)) <= {0, *PROTOCOL.structures}
        assert labels.array.any()
        assert case.scanner["simulated"] is True


def test_the_same_label_maps_give_the_same_site(tmp_path: Path) -> None:
    """An import made again has the same cases with the same bytes."""
    files = []
    for name in ("one", "two"):
        folder = added(tmp_path / name).folder
        files.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert files[0] == files[1]


def test_a_drawn_scan_shows_what_its_labels_say(tmp_path: Path) -> None:
    """With every effect off, a structure lies where the map has it, in its brightness, on any axes."""
    codes = head()
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    labels = Volume(codes.astype(np.int16), affine)
    plain = USUAL.still(magnitude=False)
    draw = renderer("brain_mri", plain, flat)(labels, PROTOCOL.freesurfer)
    turns = set()
    for seed in range(4):
        scan, structure = draw(np.random.default_rng(seed))
        turns.add(nib.aff2axcodes(scan.affine))
        for code in (2, 17):
            ours = PROTOCOL.freesurfer[code]
            drawn = np.isin(structure, ours).sum()
            there = np.isin([PROTOCOL.freesurfer.get(c, 0) for c in codes.ravel().tolist()], ours).sum()
            assert drawn == pytest.approx(there, rel=0.15)
            inside = scan.array[structure == ours]
            assert np.median(inside) > 0
    assert len(turns) > 1


@pytest.mark.parametrize(
    ("codes", "said"),
    [([0, 511, 777], "unknown label code(s) 777"), ([0, 511, 515], "no structure of the task")],
)
def test_a_label_map_that_cannot_be_rendered_is_named(
    tmp_path: Path, codes: list[int], said: str
) -> None:
    """Unknown codes and a map of nothing are told, and nothing is imported."""
    folder = source(tmp_path / "from", people=2)
    save(folder / "odd.nii.gz", np.resize(codes, (8, 8, 8)))
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(ImportProblemsError) as caught:
        add_site(Request("maps", folder, tmp_path / "root", layout="labelmaps"), render=RENDER)
    told = {problem.case: problem.what for problem in caught.value.problems}
    assert said in told["odd"]
    assert "is no label map" in told["notes.txt"]
    assert not list((tmp_path / "root").rglob("*.nii.gz"))


def test_a_map_that_is_there_twice_is_named(tmp_path: Path) -> None:
    """Two files of one person would be in training and in the test."""
    folder = source(tmp_path / "from", people=2)
    (folder / "again.nii.gz").write_bytes((folder / "person_0.nii.gz").read_bytes())
    with pytest.raises(ImportProblemsError, match="has the same voxels as"):
        add_site(Request("maps", folder, tmp_path / "root", layout="labelmaps"), render=RENDER)


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    """'segdistill site add --layout labelmaps' counts the maps and the scans made from the others."""
    where = [
        "--from",
        str(source(tmp_path / "from")),
        "--root",
        str(tmp_path / "root"),
        "--scans",
        "1",
    ]
    result = CliRunner().invoke(app, ["site", "add", "maps", *where, "--layout", "labelmaps"])
    assert result.exit_code == 0, result.output
    assert "label maps to render while training and" in result.output
    unsaid = CliRunner().invoke(app, ["site", "add", "others", *where])
    assert "--layout labelmaps for label maps without scans" in unsaid.output


def prepared(tmp_path: Path) -> tuple[Site, Any, Path]:
    """The maps as the networks see them."""
    done = added(tmp_path, fractions=(0.5, 0.2, 0.3))
    sites = list(read_sites(done.folder.parent))
    knobs = PlanKnobs(
        modality="mri",
        orientation="RAS",
        spacing_mm=(4.0, 4.0, 4.0),
        foreground="above_mean",
        normalisation="zscore",
        patch_size=(16, 16, 16),
        mode="windows",
        overlap=0.5,
    )
    plan = make_plan(sites, knobs, task="brain_mri", stem_stride=1, stages=3, render=lambda: RENDER)
    folder = tmp_path / "prepared"
    prepare(sites, plan, folder, partial(write_person, task="brain_mri"))
    plan.write(tmp_path / "plan.json")
    return done.site, plan, folder


def test_prepared_maps_are_read_as_people_and_not_as_cases(tmp_path: Path) -> None:
    """The index tells maps from scans; train has the people, val the rendered scans."""
    site, _, folder = prepared(tmp_path)
    rows = {row["case"]: row for row in read_json(folder / "index.json")}
    assert {row.get("rendered", False) for row in rows.values() if row["split"] == "train"} == {True}
    people = read_people(folder, torch.device("cpu"))
    assert len(people) == sum(case.split == "train" for case in site.cases)
    assert all(isinstance(person, LabelMap) for person in people)
    assert read_cases(folder, "train") == []
    assert len(read_cases(folder, "val")) == 2


def test_patches_of_people_and_of_scans_mix_in_the_share_that_is_asked(tmp_path: Path) -> None:
    """Share 1 draws from maps alone, 0 from scans alone, and the same step gives the same patch."""
    _, plan, folder = prepared(tmp_path)
    people, scans = read_people(folder, torch.device("cpu")), read_cases(folder, "val")

    def sampler(share: float, cases: list[Any], size: int = 2) -> PatchSampler:
        return PatchSampler(
            cases,
            plan,
            batch_size=size,
            foreground_share=0.5,
            flip_left_right=False,
            seed=1,
            people=People(people, replace(USUAL, share=share)),
        )

    alone, mixed = sampler(1.0, scans).batch(5), sampler(0.0, []).batch(5)
    assert alone.image.shape == (2, 1, 16, 16, 16)
    assert not torch.equal(alone.image, sampler(0.0, scans).batch(5).image)
    assert torch.equal(mixed.image, sampler(1.0, []).batch(5).image)
    assert torch.equal(alone.image, sampler(1.0, scans).batch(5).image)
    whole = sampler(1.0, [], size=1).batch(0).image
    assert all(edge <= 16 and edge % 4 == 0 for edge in whole.shape[2:])


def test_a_network_trains_on_people_alone(tmp_path: Path) -> None:
    """Without a single scan in train, the loop runs to its end and validates on the rendered scans."""
    prepared(tmp_path)
    (tmp_path / "prepared").rename(tmp_path / "data")
    job = toy_job(tmp_path, steps=4, network=NETWORK, rendering=USUAL)
    _, history = run_here(job, tmp_path / "runs")
    assert history[-1]["step"] == 4
    assert 0 <= history[-1]["val_dice"] <= 1
    other = replace(job, rendering=replace(USUAL, grey=(0.5, 0.6)))
    assert other.digest() != job.digest()
    taught = replace(DISTILLATION, teaching="stored")
    stored = replace(job, distillation=taught, training=TRAINING)
    with pytest.raises(SegdistillError, match="teaching to live"):
        run_here(stored, tmp_path / "runs")


def test_a_scan_is_only_missing_where_maps_are_rendered(tmp_path: Path) -> None:
    """A manifest whose val case lost its scan, or whose site has no source codes, is refused."""
    done = added(tmp_path)
    for wrong in (
        replace(done.site, source_codes={}),
        replace(done.site, cases=tuple(replace(case, image=None) for case in done.site.cases)),
    ):
        with pytest.raises(SegdistillError, match="has no scan"):
            wrong.write(done.folder)
    assert asdict(Site.read(done.folder)) == asdict(done.site)
