import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import soft_labels as stage
from segdistill.files import SegdistillError, read_json, write_json
from segdistill.network.model import read_model, write_model
from segdistill.runtime.plan import Plan
from segdistill.training.distillation.soft_labels import compress, expand, write_soft_labels
from segdistill.training.launch import run_here
from segdistill.training.loop import training_cases
from segdistill.training.patches import PatchSampler, read_cases
from tests.knobs import write_params
from tests.training.toy import DISTILLATION, toy_job


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained toy teacher with its soft labels; its first training case has lost its label."""
    folder = tmp_path_factory.mktemp("taught")
    job = toy_job(folder, steps=120)
    network, _ = run_here(job, folder / "runs")
    plan = Plan.read(Path(job.plan))
    write_model(
        folder / "teacher", network, plan, name="teacher", role="teacher", width=1.0, training={}
    )
    index = read_json(folder / "data" / "index.json")
    index[0]["labelled"] = False
    write_json(folder / "data" / "index.json", index)
    (folder / "data" / f"{index[0]['case']}.label.npy").rename(folder / "truth.npy")
    write_soft_labels(read_model(folder / "teacher", plan), plan, folder / "data", folder / "soft")
    return folder


def test_a_teacher_that_gives_no_numbers_writes_no_soft_labels(taught: Path, tmp_path: Path) -> None:
    """Logits that aren't finite end the stage with the case's name, and nothing is written."""
    plan = Plan.read(next(taught.rglob("plan.json")))
    teacher = read_model(taught / "teacher", plan)
    with torch.no_grad():
        next(teacher.network.parameters()).fill_(float("nan"))
    with pytest.raises(SegdistillError, match=r"^\S+: the network gave logits that are NaN"):
        write_soft_labels(teacher, plan, taught / "data", tmp_path / "soft")
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12), sharp=st.floats(0.1, 20))
def test_what_is_kept_of_the_likeliest_two_classes_is_exact_to_a_255th(
    seed: int, classes: int, sharp: float
) -> None:
    """Compressed and expanded, the winner stays, and no probability of the first two is off by 1/255."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(sharp * random.standard_normal((classes, 3, 4, 5))).float()
    before = torch.softmax(logits, dim=0)
    compact = compress(before.numpy())
    assert (compact.dtype, compact.shape) == (np.uint8, (4, 3, 4, 5))
    after = expand(torch.from_numpy(compact)[None], classes, 1.0)[0]
    torch.testing.assert_close(after.sum(dim=0), torch.ones(3, 4, 5))
    torch.testing.assert_close(torch.from_numpy(compact[0]).long(), before.argmax(dim=0))
    two = torch.from_numpy(compact[:2]).long()
    assert (after.gather(0, two) - before.gather(0, two)).abs().max() < 1.5 / 255


def test_temperature_softens_stored_labels_as_it_softens_logits() -> None:
    """Of two classes, which are kept in full, p^(1/T) is the softmax of the logits over T."""
    logits = torch.linspace(-3, 3, 60).reshape(1, 1, 3, 4, 5)
    pair = torch.cat([logits, -logits], dim=1)
    compact = torch.from_numpy(compress(torch.softmax(pair, dim=1)[0].numpy()))[None]
    torch.testing.assert_close(
        expand(compact, 2, 2.0), torch.softmax(pair / 2, dim=1), rtol=0, atol=0.02
    )


def test_every_training_case_gets_soft_labels_that_know_its_structures(taught: Path) -> None:
    """Labelled or not, a training case gets them; the toy's unlabelled one is found nearly right."""
    assert len(list((taught / "soft").glob("*.soft.npy"))) == 6
    found = np.load(taught / "soft" / "toy-0.soft.npy")[0]
    truth = np.load(taught / "truth.npy")
    assert 2 * (found * truth > 0).sum() / ((found > 0).sum() + (truth > 0).sum()) > 0.7


def test_soft_labels_move_with_the_image(taught: Path) -> None:
    """In every augmented patch, flipped or turned, the likeliest class is where the label is."""
    plan = Plan.read(taught / "plan.json")
    cases = read_cases(taught / "data", "train", soft=taught / "soft")
    exact = [
        type(case)(case.case, case.image, case.label, np.stack([case.label] * 2 + [case.label * 0] * 2))
        for case in cases
    ]
    sampler = PatchSampler(exact, plan, batch_size=4, foreground_share=1.0, flip_left_right=True, seed=3)
    for step in range(12):
        batch = sampler.batch(step)
        assert batch.soft is not None
        assert batch.soft.dtype == torch.uint8
        assert torch.equal(batch.soft[:, 0].long(), batch.label)


def test_unlabelled_cases_are_for_students_alone(taught: Path) -> None:
    """Teacher and control never see an unlabelled case; a student sees it with its teacher's labels."""
    alone = read_cases(taught / "data", "train")
    student = read_cases(taught / "data", "train", soft=taught / "soft")
    assert [case.case for case in student] == ["toy-0", *(case.case for case in alone)]
    assert set(np.unique(student[0].label)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "needed"),
    [({"teaching": "stored"}, True), ({"teaching": "stored", "logit_weight": 0.0}, False), ({}, False)],
    ids=["stored", "weight 0", "live"],
)
def test_soft_labels_move_along_only_where_a_term_needs_them(
    taught: Path, change: dict[str, Any], needed: bool
) -> None:
    """Without a term that needs them, patches carry no soft labels; else nothing changes."""
    job = toy_job(
        taught,
        role="student",
        soft_labels=str(taught / "soft"),
        distillation=replace(DISTILLATION, **change),
    )
    plan = Plan.read(taught / "plan.json")
    cases = training_cases(job)
    everything = read_cases(taught / "data", "train", soft=taught / "soft")
    assert [case.case for case in cases] == [case.case for case in everything]
    mine, all_along = (
        PatchSampler(each, plan, batch_size=2, foreground_share=0.7, flip_left_right=True, seed=1).batch(
            3
        )
        for each in (cases, everything)
    )
    assert torch.equal(mine.image, all_along.image)
    assert torch.equal(mine.label, all_along.label)
    assert (mine.soft is not None) is needed


def test_a_student_learns_a_site_without_labels_from_its_teacher(taught: Path, tmp_path: Path) -> None:
    """With only unlabelled training cases, a student still learns the structures."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (taught / "data").glob("*.npy"):
        (data / path.name).symlink_to(path)
    index = read_json(taught / "data" / "index.json")
    write_json(data / "index.json", [e | {"labelled": e["split"] == "val"} for e in index])
    job = toy_job(
        taught,
        name="student",
        role="student",
        width=0.5,
        steps=120,
        data=str(data),
        teacher=str(taught / "teacher"),
        soft_labels=str(taught / "soft"),
        distillation=replace(DISTILLATION, teaching="stored"),
    )
    _, history = run_here(job, tmp_path / "runs")
    assert history[-1]["val_dice"] > 0.6
    assert history[-1]["teacher_share"] < 0.05


def _stage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["soft_labels", *arguments])
    stage.main()


@pytest.mark.parametrize(
    ("change", "unlabelled", "needed"),
    [
        ({}, False, False),
        ({"logit_weight": 1.0, "teaching": "live"}, False, False),
        ({"logit_weight": 1.0}, False, True),
        ({}, True, True),
    ],
    ids=["no term", "live", "a stored term", "unlabelled"],
)
def test_the_stage_runs_the_teacher_only_if_a_student_needs_it(
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    unlabelled: bool,
    needed: bool,
) -> None:
    """Without a stored term and without unlabelled cases it leaves an index of none, teacher or not."""
    index = read_json(taught / "data" / "index.json")
    data = tmp_path / "data"
    data.mkdir()
    for path in (taught / "data").glob("*.npy"):
        (data / path.name).symlink_to(path)
    write_json(data / "index.json", index if unlabelled else index[1:])
    usual = asdict(replace(DISTILLATION, teaching="stored", logit_weight=0.0))
    params = write_params(tmp_path / "params.yaml", distillation=usual | change)
    where = ["--plan", taught / "plan.json", "--data", data, "--out", tmp_path / "soft"]
    teacher = taught / "teacher" if needed else tmp_path / "no teacher"
    arguments = [*where, "--params", params, "--teacher", teacher]
    _stage([str(argument) for argument in arguments], monkeypatch)
    cases = (6 if unlabelled else 5) if needed else 0
    assert read_json(tmp_path / "soft" / "index.json")["cases"] == cases
    assert len(list((tmp_path / "soft").glob("*.soft.npy"))) == cases


def test_a_student_without_stored_terms_needs_no_soft_labels(taught: Path, tmp_path: Path) -> None:
    """With an empty folder of soft labels its cases are the labelled ones."""
    data = tmp_path / "data"
    shutil.copytree(taught / "data", data)
    write_json(data / "index.json", read_json(data / "index.json")[1:])
    soft = tmp_path / "soft"
    soft.mkdir()
    job = toy_job(
        taught, role="student", data=str(data), soft_labels=str(soft), distillation=DISTILLATION
    )
    assert [case.soft for case in training_cases(job)] == [None] * 5
    stored = replace(job, distillation=replace(DISTILLATION, teaching="stored"))
    with pytest.raises(SegdistillError, match="no soft labels of this case"):
        training_cases(stored)


def test_missing_soft_labels_are_named(taught: Path, tmp_path: Path) -> None:
    """A training case without soft labels gives an error with the file and the stage to run."""
    with pytest.raises(SegdistillError, match="soft_labels") as error:
        read_cases(taught / "data", "train", soft=tmp_path)
    assert "toy-0" in str(error.value)
