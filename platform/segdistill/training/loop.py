"""The training loop: one for teacher, student and control, in one process or on many workers."""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segdistill.files import SegdistillError
from segdistill.network.architecture import Architecture
from segdistill.network.finite import require_finite
from segdistill.network.model import TorchBackend, read_model
from segdistill.network.unet import UNet, own_tensors
from segdistill.overlap import dice_by_code
from segdistill.runtime.plan import Plan
from segdistill.runtime.windows import predict
from segdistill.training import checkpoint
from segdistill.training.device import has_bf16
from segdistill.training.distillation.inherit import inherit
from segdistill.training.distillation.knobs import DistillationKnobs
from segdistill.training.distillation.teaching import FeatureTap, Teaching
from segdistill.training.index import any_rendered
from segdistill.training.job import Job
from segdistill.training.losses import supervised_loss
from segdistill.training.patches import (
    Batch,
    PatchSampler,
    People,
    Small,
    TrainingCase,
    ahead,
    read_cases,
    read_people,
)
from segdistill.training.schedule import Phase, Schedule
from segdistill.training.session import Session
from segdistill.training.start import start_from
from segdistill.training.tracking import Tracker

TERMS = ("supervised", "logit", "region", "context")  # of the loss, weights included
LOG_STEPS = 25  # steps that one row of the learning curve averages
_INHERIT_BATCHES = 12  # of patches, from which a student's start is worked out
_CLIP = 12.0  # largest norm of the gradient, as nnU-Net


def train(job: Job, session: Session) -> None:
    """Train until the schedule ends, going on from the session's last checkpoint if there is one.

    The last checkpoint holds the finished network and the learning curve; :func:`finished` reads it.

    Raises:
        SegdistillError: the loss stopped being a number, or the job's start is of another architecture.
    """
    plan = Plan.read(Path(job.plan))
    knobs = job.training
    torch.manual_seed(job.seed)
    network = UNet(Architecture.scaled(job.network, job.width, plan.channels_out)).to(session.device)
    small = Small.from_knobs(knobs, plan)
    sampler = PatchSampler(
        training_cases(job),
        plan,
        batch_size=knobs.batch_size,
        foreground_share=knobs.foreground_share,
        flip_left_right=knobs.flip_left_right,
        seed=job.seed,
        small=small,
        people=People(read_people(Path(job.data), session.device), job.rendering),
    )
    latest = _last_checkpoint(job, session)
    teacher = _Teacher.of(job, plan, session, network)
    if latest is None and job.start:
        start_from(Path(job.start), network)
    if teacher is not None and teacher.knobs.inherit and latest is None:
        first = Schedule.of(knobs, job.steps, [])
        _inherit(network, teacher.network, sampler, session, full=first.full_from == 0)
    wrapped = session.wrap(network)
    trained = nn.ModuleDict({"network": network})
    if teacher is not None:
        trained["teaching"] = teacher.teaching
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=job.learning_rate, weight_decay=knobs.weight_decay
    )
    average = None
    if knobs.ema:
        moving = get_ema_multi_avg_fn(knobs.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=moving, use_buffers=True)
    result: UNet = network if average is None else average.module  # type: ignore[assignment]
    state = checkpoint.State(trained, optimizer, average)
    val_cases = read_cases(Path(job.data), "val")
    half = knobs.precision == "bf16" and has_bf16(session.device)
    tracker = Tracker(job.tracking if session.rank == 0 else {})
    start = 0
    history: list[dict[str, Any]] = []
    if latest is not None:
        start, history = checkpoint.restore(latest, state)
    curve = _Curve(job, start, session)
    if start and session.rank == 0:
        session.say(f"{job.name}: goes on after step {start} of {job.steps}")

    began = time.perf_counter()
    for step, schedule, batch in _steps(job, start, history, sampler, session):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, job.learning_rate)
        batch = batch.to(session.device)
        loaded = time.perf_counter()
        wrapped.train()
        target = None
        with torch.autocast(session.device.type, torch.bfloat16, enabled=half):
            if teacher is not None:
                target = teacher.forward(batch, step)
            teacher_done = time.perf_counter()
            levels = wrapped(batch.image)
        losses = {"supervised": supervised_loss(levels, batch.label, knobs.dice_weight, knobs.ce_weight)}
        if teacher is not None and target is not None:
            losses |= teacher.terms(levels, target, batch, step)
        loss = torch.stack(list(losses.values())).sum()
        if not math.isfinite(loss.item()):
            raise SegdistillError(
                f"{job.name}: the loss is no number at step {step}. Lower its learning_rate, "
                "or use precision f32."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), _CLIP)
        optimizer.step()
        if average is not None:
            average.update_parameters(network)
        now = time.perf_counter()
        curve.add(
            losses,
            samples=len(batch.image) * session.workers,
            data=loaded - began,
            teacher=teacher_done - loaded,
            total=now - began,
        )
        began = now

        done = step + 1
        last = done == schedule.steps
        turns = done in (schedule.warm_up_until, schedule.constant_until)
        looked_at = last or done % knobs.validate_steps == 0
        if done % LOG_STEPS == 0 or turns or looked_at:
            row = curve.row(done, schedule.phase(step), optimizer.param_groups[0]["lr"])
            if looked_at:
                seen = plan
                if done <= schedule.full_from and not last:
                    # It never saw more at once than a small patch.
                    seen = replace(plan, mode="windows", patch_size=small.patch_size)
                own = validate(result, val_cases, seen) if session.rank == 0 else 0.0
                row["val_dice"] = session.from_first(own)
            history.append(row)
            tracker.log(row)
            curve.show(row, schedule)
        # With more steps, the same training would be at this point, too.
        keep = knobs.patience > 0 and not schedule.flat and done == schedule.constant_until
        if done % knobs.checkpoint_steps == 0 or keep or last:
            with tempfile.TemporaryDirectory() as name:
                if session.rank == 0:
                    checkpoint.save(Path(name), state, done, job.steps, history)
                metrics = {"step": done, "loss": history[-1]["loss"] if history else None}
                session.report(metrics, Path(name), keep=keep)
        began = time.perf_counter()  # validating and saving are no part of a step


def _steps(
    job: Job,
    start: int,
    history: Sequence[Mapping[str, Any]],
    sampler: PatchSampler,
    session: Session,
) -> Iterator[tuple[int, Schedule, Batch]]:
    """Every step from ``start`` on, with the schedule and the batch, which is drawn ahead.

    Where a validation may change the schedule, it is worked out again from ``history``, to which the
    caller has added the validation by then.
    """
    while True:
        schedule = Schedule.of(job.training, job.steps, history)
        steps = range(start, schedule.known_until(start, job.training))
        if not steps:
            return

        def draw(step: int, full_from: int = schedule.full_from) -> Batch:
            return sampler.batch(step, session.rank, full=step >= full_from)

        for step, batch in zip(steps, ahead(draw, steps), strict=True):
            yield step, schedule, batch
        start = steps.stop


def _last_checkpoint(job: Job, session: Session) -> Path | None:
    """The last checkpoint of this training that serves it: its own steps, or what comes before them.

    One of the same job with another number of steps serves up to the end of the constant phase: until
    then both are one training.
    """
    for folder in (session.latest(), session.kept()):
        if folder is None:
            continue
        step, steps, history = checkpoint.progress(folder)
        theirs, ours = (Schedule.of(job.training, most, history) for most in (steps, job.steps))
        both = min(theirs.constant_until, ours.constant_until)
        if theirs == ours or (theirs.warm_up_until == ours.warm_up_until and step <= both):
            return folder
    return None


def training_cases(job: Job) -> list[TrainingCase]:
    """The training split, with soft labels only where every patch needs its own.

    They are larger than image and label together, so moving them along for nothing would more than
    double the cost of drawing a patch. Unlabelled cases keep the label that they get from them.
    """
    data, soft = Path(job.data), Path(job.soft_labels) if job.soft_labels else None
    if not (job.distillation and job.distillation.needs_soft_labels):
        cases = read_cases(data, "train", soft=soft, soft_of_all=False)
        return [replace(case, soft=None) for case in cases]
    if any_rendered(data):
        raise SegdistillError(
            f"{job.name}: scans that are rendered while training have no stored soft labels. "
            "Set distillation.teaching to live."
        )
    return read_cases(data, "train", soft=soft)


@dataclass(frozen=True)
class _TeacherPass:
    """The teacher's logits and features on a batch; no logits where soft labels are stored."""

    levels: list[Tensor] | None
    features: list[Tensor]


class _Teacher:
    """The teacher beside a student in training."""

    @classmethod
    def of(cls, job: Job, plan: Plan, session: Session, student: UNet) -> "_Teacher | None":
        if job.teacher is None or job.distillation is None:
            return None
        return cls(job, job.teacher, job.distillation, plan, session, student)

    def __init__(
        self,
        job: Job,
        folder: str,
        knobs: DistillationKnobs,
        plan: Plan,
        session: Session,
        student: UNet,
    ) -> None:
        self.knobs = knobs
        teacher = read_model(Path(folder), plan).network.to(session.device).eval()
        self.network = teacher.requires_grad_(False)
        self.teaching = Teaching(
            self.knobs, student.architecture.channels, teacher.architecture.channels
        ).to(session.device)
        # With several workers its projections' gradients must be averaged, too; without any there is
        # nothing to average, which DDP refuses.
        has_own = any(True for _ in self.teaching.parameters())
        self._wrapped = session.wrap(self.teaching) if has_own else self.teaching
        self._taps = (FeatureTap(student), FeatureTap(teacher)) if has_own else ()
        self._from = self.knobs.warm_up_steps if self.knobs.has_terms else job.steps
        self._seed = job.seed

    def forward(self, batch: Batch, step: int) -> _TeacherPass | None:
        """The teacher's forward pass, if it runs live; None during the student's warm-up."""
        if step < self._from:
            return None
        if self.knobs.teaching == "stored":
            return _TeacherPass(None, [])
        with torch.no_grad():
            levels = self.network.levels(batch.image)
        return _TeacherPass(levels, self._taps[1].take() if self._taps else [])

    def terms(
        self, levels: list[Tensor], target: _TeacherPass, batch: Batch, step: int
    ) -> dict[str, Tensor]:
        """The weighted distillation terms of a step."""
        terms: dict[str, Tensor] = self._wrapped(
            levels,
            self._taps[0].take() if self._taps else [],
            self.teaching.logit_targets(levels, target.levels, batch.soft),
            target.features,
            batch.label,
            self._seed + step,
        )
        return terms


def _inherit(
    network: UNet, teacher: UNet, sampler: PatchSampler, session: Session, *, full: bool
) -> None:
    # Patches that no worker trains on, the same ones for all.
    batches = (sampler.batch(step, session.workers, full=full) for step in range(_INHERIT_BATCHES))
    explained = inherit(network, teacher, [batch.image.to(session.device) for batch in batches])
    worst = min(explained, key=lambda name: explained[name])
    if session.rank == 0:
        mean = sum(explained.values()) / len(explained)
        session.say(
            f"starts from the teacher's features: {mean:.0%} of their variance kept, "
            f"least in {worst} ({explained[worst]:.0%})"
        )


def finished(folder: Path, job: Job) -> tuple[UNet, list[dict[str, Any]]]:
    """The trained network (on the CPU) and its learning curve, from the last checkpoint's folder.

    Raises:
        SegdistillError: the training stopped early, or a weight isn't finite.
    """
    plan = Plan.read(Path(job.plan))
    network = UNet(Architecture.scaled(job.network, job.width, plan.channels_out))
    step, history = checkpoint.restore_result(folder, network)
    if step != (steps := Schedule.of(job.training, job.steps, history).steps):
        raise SegdistillError(f"{folder}: stopped at step {step} of {steps}. Run 'dvc repro' again.")
    require_finite(own_tensors(network), f"{job.name} after step {step}")
    return network.eval(), history


def validate(network: UNet, cases: list[TrainingCase], plan: Plan) -> float:
    """Mean Dice (structures present, then cases), see :func:`structure_dice`."""
    return float(np.nanmean(structure_dice(network, cases, plan), axis=1).mean())


def structure_dice(network: UNet, cases: list[TrainingCase], plan: Plan) -> NDArray[np.float64]:
    """Dice on the plan's grid, in the plan's mode; windows don't overlap.

    Returns:
        (cases, structures), NaN where a case's labels lack the structure.
    """
    quick = replace(plan, overlap=0.0)
    backend = TorchBackend(network)
    scores = []
    for case in cases:
        predicted = predict(case.image.astype(np.float32), quick, backend).argmax(axis=0)
        label = np.asarray(case.label)
        scores.append(dice_by_code(predicted, label, plan.channels_out - 1, in_reference=True))
    return np.array(scores)


class _Curve:
    """Averages over the steps since the last row, and the line of progress."""

    def __init__(self, job: Job, start: int, session: Session) -> None:
        self._job, self._session = job, session
        self._sums: dict[str, float] = {}
        self._count = 0
        self._start, self._began, self._last_shown = start, time.perf_counter(), -math.inf

    def add(self, losses: Mapping[str, Tensor], **counts: float) -> None:
        values = {name: float(value.detach()) for name, value in losses.items()} | counts
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def row(self, step: int, phase: Phase, rate: float) -> dict[str, Any]:
        mean = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return {
            "step": step,
            "phase": phase,
            "loss": round(sum(mean.get(name, 0.0) for name in TERMS), 6),
            **{name: round(mean.get(name, 0.0), 6) for name in TERMS},
            "val_dice": None,
            "learning_rate": rate,
            "seconds_per_step": round(mean["total"], 5),
            "samples_per_second": round(mean["samples"] / mean["total"], 3),
            "data_share": round(mean["data"] / mean["total"], 4),
            "teacher_share": round(mean["teacher"] / mean["total"], 4),
            "student_share": round(1 - (mean["data"] + mean["teacher"]) / mean["total"], 4),
        }

    def show(self, row: Mapping[str, Any], schedule: Schedule) -> None:
        now = time.perf_counter()
        done = row["val_dice"] is not None
        if self._session.rank or (now - self._last_shown < 10 and not done):
            return
        self._last_shown = now
        left = (now - self._began) / (row["step"] - self._start) * (schedule.steps - row["step"])
        dice = "" if row["val_dice"] is None else f"  val Dice {row['val_dice']:.3f}"
        self._session.say(
            f"{self._job.name}: step {row['step']} of {schedule.steps}  loss {row['loss']:.3f}{dice}  "
            f"{row['samples_per_second']:.1f} patches/s  about {left / 60:.0f} min left"
        )
