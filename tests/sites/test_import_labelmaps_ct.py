"""Label maps of trunks without scans: imported, prepared, and trained on."""

from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.overlap import IGNORED
from segdistill.simulation.rendering.knobs import USUAL_CT
from segdistill.simulation.rendering.making import write_person
from segdistill.simulation.rendering.whole import renderer
from segdistill.sites.manifest import Site, read_sites
from segdistill.sites.prepare import PlanKnobs, hold_out, make_plan, prepare
from segdistill.training.launch import run_here
from segdistill.training.patches import PatchSampler, People, read_cases, read_people
from segdistill.volume import grid_difference, read_label_map, read_volume
from tests.simulation.rendering_trunks import ICRP, trunk
from tests.training.toy import NETWORK, toy_job

EDGES = (6.0, 6.0, 12.0)
TASK = "abdominal_ct"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, one of whom is kept out of training, imported by the command."""
    root = tmp_path_factory.mktemp("people")
    for number, (name, options) in enumerate(
        {"one": ["--split", "1,0,0"], "two": ["--held-out"], "val": ["--split", "0,1,0"]}.items()
    ):
        source = root / "from" / name
        source.mkdir(parents=True)
        codes = trunk((72, 42, 22), EDGES)
        codes[30 + number, 20, 10] = 113
        nib.save(nib.Nifti1Image(codes, np.diag([-6.0, -6.0, 12.0, 1.0])), source / "trunk.nii.gz")
        where = ["--from", str(source), "--root", str(root), "--task", TASK, "--scans", "2", *options]
        done = CliRunner().invoke(
            app, ["site", "add", name, *where, "--layout", "labelmaps", "--labels", "icrp110"]
        )
        assert done.exit_code == 0, done.output
        assert "note: no label map has aorta, inferior_vena_cava" in done.output
    return root / "data" / "sites" / TASK


def test_a_person_of_thick_slices_becomes_cubes_and_scans_in_hu(sites: Path) -> None:
    """Train keeps ICRP's codes on cubes; a person left out has scans, whose vessels are ignored."""
    found = {site.site: (folder, site) for folder, site in read_sites(sites)}
    folder, site = found["one"]
    assert site.source_codes == {code: ICRP[code] for code in site.source_codes}
    assert site.source_codes[10] == IGNORED
    (case,) = site.cases
    labels = read_label_map(folder / str(case.label))
    assert labels.spacing_mm == pytest.approx((6.0, 6.0, 6.0))
    assert labels.array.shape == (72, 42, 44)
    folder, site = found["two"]
    assert [case.split for case in site.cases] == ["test", "test"]
    for case in site.cases:
        scan, truth = read_volume(folder / case.scan), read_label_map(folder / str(case.label))
        assert not grid_difference(scan, truth)
        assert IGNORED in truth.array
        assert -1200 < scan.array.min() < -900
        soft = (truth.array > 0) & (truth.array < 11)
        assert -50 < np.median(scan.array[soft]) < 250


def test_labels_must_be_chosen_where_the_task_has_no_freesurfer_map(sites: Path, tmp_path: Path) -> None:
    """Codes of a trunk are never guessed."""
    source = sites.parents[2] / "from" / "one"
    where = ["--from", str(source), "--root", str(tmp_path), "--task", TASK, "--layout", "labelmaps"]
    done = CliRunner().invoke(app, ["site", "add", "guess", *where])
    assert done.exit_code != 0
    assert "say what they are with --labels" in done.output


def _plan(sites: list[tuple[Path, Site]]) -> Any:
    knobs = PlanKnobs(
        modality="ct",
        orientation="RAS",
        spacing_mm=(6.0, 6.0, 6.0),
        foreground="body",
        normalisation="ct",
        patch_size=(16, 16, 16),
        mode="windows",
        overlap=0.5,
    )
    return make_plan(sites, knobs, task=TASK, stem_stride=1, stages=3, render=partial(renderer, TASK))


def test_a_plan_and_patches_come_from_label_maps_alone(sites: Path, tmp_path: Path) -> None:
    """Without a scan in train, HU statistics are of drawn ones, and a network trains on the maps."""
    people = list(read_sites(sites))
    plan = _plan(people)
    how = plan.normalisation
    assert how.clip_hu[0] < 0 < how.mean_hu < how.clip_hu[1]
    assert _plan(people) == plan
    prepare(people, plan, tmp_path / "data", partial(write_person, task=TASK))
    plan.write(tmp_path / "plan.json")
    maps = read_people(tmp_path / "data", torch.device("cpu"))
    assert len(maps) == 1
    (val, _) = read_cases(tmp_path / "data", "val")
    assert IGNORED in val.label
    sampler = PatchSampler(
        [],
        plan,
        batch_size=4,
        foreground_share=0.7,
        flip_left_right=False,
        seed=1,
        people=People(maps, USUAL_CT),
    )
    labels = torch.stack([sampler.batch(step).label for step in range(4)])
    assert IGNORED in labels
    assert {2, 3, 5} <= set(labels.unique().tolist())
    job = toy_job(tmp_path, steps=3, network=NETWORK, rendering=USUAL_CT)
    _, history = run_here(job, tmp_path / "runs")
    assert np.isfinite(history[-1]["loss"])
    assert 0 <= history[-1]["val_dice"] <= 1


def test_several_sites_can_be_kept_out(sites: Path) -> None:
    """A person of several sites is left out by naming them all."""
    people = list(read_sites(sites))
    out = hold_out(people, ["one", "val"])
    assert [site.held_out for _, site in out] == [True, True, True]
