import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segdistill.files import SegdistillError
from segdistill.network.model import write_model
from segdistill.network.unet import own_tensors
from segdistill.runtime.plan import Plan
from segdistill.runtime.windows import pad
from segdistill.training.job import Job
from segdistill.training.launch import run_here
from segdistill.training.loop import finished, train
from segdistill.training.patches import Batch, PatchSampler, Small, ahead, read_cases
from segdistill.training.session import LocalSession
from tests.training.toy import DISTILLATION, TRAINING, toy_job


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = own_tensors(a), own_tensors(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


class _StoppedError(Exception):
    pass


class _PowerCut(LocalSession):
    """A session that dies right after its second checkpoint."""

    reports = 0

    def report(self, metrics: Mapping[str, Any], checkpoint: Path, *, keep: bool = False) -> None:
        super().report(metrics, checkpoint, keep=keep)
        self.reports += 1
        if self.reports == 2:
            raise _StoppedError


def test_training_learns_the_task(tmp_path: Path) -> None:
    """The loop, in one process without Ray, learns a task that can be learned."""
    _, history = run_here(toy_job(tmp_path, steps=150), tmp_path / "runs")
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["val_dice"] > 0.7


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Stopped after step 10 of 20 and started again, a training ends with the very same weights."""
    job = toy_job(tmp_path)
    straight, _ = run_here(job, tmp_path / "straight")
    folder = tmp_path / "stopped"
    folder.mkdir()
    with pytest.raises(_StoppedError):
        train(job, _PowerCut(folder))
    session = LocalSession(folder)
    train(job, session)
    latest = session.latest()
    assert latest is not None
    resumed, history = finished(latest, job)
    assert _same(straight, resumed)
    assert history[-1]["step"] == 20


def test_an_unfinished_training_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    """The network of a run that stopped halfway isn't handed out."""
    job = toy_job(tmp_path)
    with pytest.raises(_StoppedError):
        train(job, _PowerCut(tmp_path))
    with pytest.raises(SegdistillError, match="stopped at step 10 of 20"):
        finished(tmp_path / "checkpoint", job)


def test_a_training_that_ends_in_no_numbers_has_no_network(tmp_path: Path) -> None:
    """A weight of the finished network that isn't finite is named, and the network isn't handed out."""
    job = toy_job(tmp_path)
    session = LocalSession(tmp_path)
    train(job, session)
    latest = session.latest()
    assert latest is not None
    state = latest / "state.safetensors"
    tensors = load_file(state)
    for name, value in tensors.items():
        if name.endswith("conv.weight") and not name.startswith("optimizer."):
            value.view(-1)[0] = float("nan")
    save_file(tensors, state)
    with pytest.raises(SegdistillError, match=rf"{job.name} after step 20: .*conv\.weight are NaN"):
        finished(latest, job)


def test_a_control_is_its_student_without_the_teacher(tmp_path: Path) -> None:
    """Only without inheriting and at distillation weight 0 does a student train as its control."""
    teacher_job = toy_job(tmp_path)
    teacher, _ = run_here(teacher_job, tmp_path / "runs")
    plan = Plan.read(Path(teacher_job.plan))
    write_model(
        tmp_path / "teacher", teacher, plan, name="teacher", role="teacher", width=1.0, training={}
    )
    common = {"width": 0.5, "steps": 10}
    taught = {"role": "student", "name": "student", "teacher": str(tmp_path / "teacher")}
    control, _ = run_here(
        toy_job(tmp_path, role="control", name="control", **common),
        tmp_path / "runs",
    )
    mute, _ = run_here(
        toy_job(
            tmp_path,
            distillation=replace(DISTILLATION, logit_weight=0.0),
            **taught,
            **common,
        ),
        tmp_path / "runs",
    )
    student, _ = run_here(
        toy_job(tmp_path, distillation=DISTILLATION, **taught, **common), tmp_path / "runs"
    )
    heir, _ = run_here(
        toy_job(
            tmp_path,
            distillation=replace(DISTILLATION, logit_weight=0.0, inherit=True),
            **taught,
            **common,
        ),
        tmp_path / "runs",
    )
    assert _same(control, mute)
    assert not _same(control, student)
    assert not _same(control, heir)


EVERY_TERM = {"region_weight": 0.5, "context_weight": 0.5, "inherit": True, "warm_up_steps": 4}


def test_a_taught_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """With every term, projections and an average of the weights, stopping changes nothing either."""
    teacher_job = toy_job(tmp_path)
    teacher, _ = run_here(teacher_job, tmp_path / "runs")
    plan = Plan.read(Path(teacher_job.plan))
    write_model(
        tmp_path / "teacher", teacher, plan, name="teacher", role="teacher", width=1.0, training={}
    )
    job = toy_job(
        tmp_path,
        name="student",
        role="student",
        width=0.5,
        teacher=str(tmp_path / "teacher"),
        training=replace(TRAINING, ema=0.9),
        distillation=replace(DISTILLATION, **EVERY_TERM),
    )
    straight, history = run_here(job, tmp_path / "straight")
    assert all(history[-1][term] > 0 for term in ("supervised", "logit", "region", "context"))
    folder = tmp_path / "stopped"
    folder.mkdir()
    with pytest.raises(_StoppedError):
        train(job, _PowerCut(folder))
    session = LocalSession(folder)
    train(job, session)
    latest = session.latest()
    assert latest is not None
    assert _same(straight, finished(latest, job)[0])


def test_the_average_of_the_weights_is_another_network(tmp_path: Path) -> None:
    """With ``ema`` what comes out is the weights' moving average, not their last value."""
    last, _ = run_here(toy_job(tmp_path), tmp_path / "runs")
    average, _ = run_here(toy_job(tmp_path, training=replace(TRAINING, ema=0.9)), tmp_path / "runs")
    assert not _same(last, average)


def test_batches_drawn_ahead_are_the_same_batches(tmp_path: Path) -> None:
    """Drawing ahead in a thread gives every step its own batch, in order, to the last."""
    drawn = []

    def draw(step: int) -> Batch:
        drawn.append(step)
        return Batch(torch.tensor(step), torch.tensor(step), None)

    assert [int(batch.image) for batch in ahead(draw, range(3, 9))] == list(range(3, 9))
    assert drawn == list(range(3, 9))
    assert list(ahead(draw, range(4, 4))) == []


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    """Diverging is said at once, with the knob to turn, instead of training on garbage."""
    job = toy_job(tmp_path)
    case = next(Path(job.data).glob("*.image.npy"))
    for path in Path(job.data).glob("*.image.npy"):
        np.save(path, np.full_like(np.load(case), np.nan))
    with pytest.raises(SegdistillError, match="learning_rate"):
        run_here(job, tmp_path / "runs")


def test_a_batch_depends_on_seed_step_and_worker_alone(tmp_path: Path) -> None:
    """The same step of the same worker gives the same patches, another step or worker others."""
    job = toy_job(tmp_path)
    plan = Plan.read(Path(job.plan))
    samplers = [
        PatchSampler(
            read_cases(Path(job.data), "train"),
            plan,
            batch_size=2,
            foreground_share=0.67,
            flip_left_right=True,
            seed=seed,
        )
        for seed in (1, 1, 2)
    ]
    first = samplers[0].batch(3, 1)
    samplers[1].batch(99)
    again = samplers[1].batch(3, 1)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    for other in (samplers[0].batch(4, 1), samplers[0].batch(3, 0), samplers[2].batch(3, 1)):
        assert not torch.equal(first.image, other.image)


def _cut(data: Path) -> None:
    """Make all cases 10 x 24 x 12 voxels, smaller than a patch on two axes."""
    for path in data.glob("*.image.npy"):
        np.save(path, np.load(path)[:, :10, :, :12])
    for path in data.glob("*.label.npy"):
        np.save(path, np.load(path)[:10, :, :12])


def test_patches_of_small_cases_are_padded_as_served_windows_are(tmp_path: Path) -> None:
    """A case smaller than the patch lies in it as in a served window, and its labels go on with it."""
    job = toy_job(tmp_path)
    plan = Plan.read(Path(job.plan))
    data = Path(job.data)
    _cut(data)
    for path in data.glob("*.label.npy"):
        np.save(path, np.full((10, 16, 12), 2, np.uint8))  # a structure out to every border
    for path in data.glob("*.image.npy"):
        np.save(path, np.load(path)[:, :, :16])
    cases = read_cases(data, "train")
    served = [pad(np.asarray(case.image, np.float32), plan.patch_size) for case in cases]
    sampler = PatchSampler(
        cases, plan, batch_size=8, foreground_share=0.5, flip_left_right=False, seed=0
    )
    untouched = 0
    for step in range(8):
        batch = sampler.batch(step)
        assert batch.image.shape == (8, 1, 16, 16, 16)
        assert (batch.label == 2).all()
        untouched += sum(
            any(np.array_equal(image, window) for window in served) for image in batch.image
        )
    assert untouched > 3  # about every fifth patch is as it was, the others are augmented


def test_a_patch_alone_is_no_larger_than_its_case(tmp_path: Path) -> None:
    """With one patch a batch, a small case is padded to the network's divisor and no further."""
    job = toy_job(tmp_path)
    plan = Plan.read(Path(job.plan))
    data = Path(job.data)
    _cut(data)
    sampler = PatchSampler(
        read_cases(data, "train"), plan, batch_size=1, foreground_share=0.5, flip_left_right=True, seed=0
    )
    assert sampler.batch(0).image.shape == (1, 1, 12, 16, 12)


def test_patches_grow_to_the_plans_size(tmp_path: Path) -> None:
    """Small patches are as large and as many as asked; the others have the plan's size."""
    job = toy_job(tmp_path)
    plan = Plan.read(Path(job.plan))
    knobs = replace(TRAINING, small_patch_size=(8, 8, 12), small_batch_size=3)
    sampler = PatchSampler(
        read_cases(Path(job.data), "train"),
        plan,
        batch_size=1,
        foreground_share=0.5,
        flip_left_right=True,
        seed=0,
        small=Small.from_knobs(knobs, plan),
    )
    shapes = [tuple(sampler.batch(0, full=full).image.shape) for full in (False, True)]
    assert shapes == [(3, 1, 8, 8, 12), (1, 1, 16, 16, 16)]


def test_a_training_counts_small_and_full_patches(tmp_path: Path) -> None:
    """A learning curve's patches per second are those drawn, also in a row where the size changes."""
    knobs = replace(TRAINING, full_share=0.5, small_batch_size=4, batch_size=1)
    _, (_, row) = run_here(toy_job(tmp_path, steps=11, training=knobs), tmp_path / "runs")
    assert row["samples_per_second"] * row["seconds_per_step"] == pytest.approx(2.2, rel=1e-2)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"small_patch_size": (8, 8, 10)}, r"training.small_patch_size is \[8, 8, 10\]"),
    ],
)
def test_small_patches_that_cannot_be_are_refused(tmp_path: Path, wrong: Any, names: str) -> None:
    """A size that the network can't take is named before training."""
    with pytest.raises(SegdistillError, match=names):
        run_here(toy_job(tmp_path, training=replace(TRAINING, **wrong)), tmp_path / "runs")


def test_every_structure_is_met_as_often(tmp_path: Path) -> None:
    """With all patches centred on structures, a rare structure is in as many patches as a common one."""
    job = toy_job(tmp_path)
    plan = Plan.read(Path(job.plan))
    data = Path(job.data)
    for path in data.glob("*.label.npy"):
        label = np.load(path)
        rare = np.argwhere(label == 2)
        label[label == 2] = 0
        label[tuple(rare[len(rare) // 2])] = 2  # one voxel is left of structure 2
        np.save(path, label)
    sampler = PatchSampler(
        read_cases(data, "train"),
        plan,
        batch_size=1,
        foreground_share=1.0,
        flip_left_right=False,
        seed=0,
    )
    with_rare = sum(bool((sampler.batch(step).label == 2).any()) for step in range(40))
    assert with_rare >= 15


def test_the_digest_of_a_job_changes_with_all_that_decides_its_outcome(tmp_path: Path) -> None:
    """Knobs, seed and data change the digest of a job, the MLflow run that follows along doesn't."""
    job = toy_job(tmp_path)
    same = toy_job(tmp_path, tracking={"uri": "sqlite:///x", "run_id": "1"})
    assert job.digest() == same.digest()
    others = {
        job.digest(),
        toy_job(tmp_path, seed=8).digest(),
        toy_job(tmp_path, training=replace(TRAINING, weight_decay=0.02)).digest(),
    }
    image = next(Path(job.data).glob("*.image.npy"))
    np.save(image, np.load(image) + 1)
    assert len(others | {job.digest()}) == 4


def test_a_job_is_the_same_after_a_journey_as_plain_values(tmp_path: Path) -> None:
    """From JSON comes the job that went in, and knobs that are none are refused on the way."""
    job = toy_job(tmp_path, role="student", distillation=DISTILLATION)
    for one in (job, replace(job, distillation=None)):
        assert Job.from_json(json.loads(json.dumps(one.to_json()))) == one
    body = job.to_json()
    with pytest.raises(SegdistillError, match=r"training\.batch is no knob"):
        Job.from_json(body | {"training": body["training"] | {"batch": 1}})
