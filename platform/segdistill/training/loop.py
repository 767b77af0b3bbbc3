"""The training loop: one for teacher, student and control, in one process or on many workers."""

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segdistill.files import SegdistillError
from segdistill.network.architecture import Architecture
from segdistill.network.model import TorchBackend, read_model
from segdistill.network.unet import UNet
from segdistill.runtime.plan import Plan
from segdistill.runtime.windows import predict
from segdistill.training import checkpoint
from segdistill.training.inherit import inherit
from segdistill.training.job import Job
from segdistill.training.losses import LossWeights, total_loss
from segdistill.training.patches import PatchSampler, TrainingCase, read_cases
from segdistill.training.session import Session
from segdistill.training.tracking import Tracker

LOG_STEPS = 25  # steps that one row of the learning curve averages
_WARM_UP = 0.05  # share of the steps in which the learning rate rises
_INHERIT_BATCHES = 12  # of patches, from which a student's start is worked out
_CLIP = 12.0  # largest norm of the gradient, as nnU-Net


def train(job: Job, session: Session) -> None:
    """Train to ``job.steps``, going on from the session's last checkpoint if there is one.

    The last checkpoint holds the finished network and the learning curve; :func:`finished` reads it.

    Raises:
        SegdistillError: the loss stopped being a number.
    """
    plan = Plan.read(Path(job.plan))
    knobs = job.training
    torch.manual_seed(job.seed)
    network = UNet(Architecture.scaled(job.network, job.width, plan.channels_out)).to(session.device)
    teacher = _teacher(job, plan, session.device)
    sampler = PatchSampler(
        read_cases(Path(job.data), "train"),
        plan,
        batch_size=knobs["batch_size"],
        foreground_share=knobs["foreground_share"],
        flip_left_right=knobs["flip_left_right"],
        seed=job.seed,
    )
    latest = session.latest()
    if teacher is not None and job.distillation["inherit"] and latest is None:
        _inherit(network, teacher, sampler, session)
    wrapped = session.wrap(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=job.learning_rate, weight_decay=knobs["weight_decay"]
    )
    val_cases = read_cases(Path(job.data), "val")
    weights = LossWeights(
        dice=job.distillation["dice_weight"],
        ce=job.distillation["ce_weight"],
        kd=job.distillation.get("kd_weight", 0.0),
        temperature=job.distillation.get("temperature", 1.0),
    )
    alone = round(job.distillation.get("warm_up", 0.0) * job.steps)
    half = knobs["precision"] == "bf16" and has_bf16(session.device)
    tracker = Tracker(job.tracking if session.rank == 0 else {})
    start = 0
    history: list[dict[str, Any]] = []
    if latest is not None:
        start, history = checkpoint.restore(latest, network, optimizer)
    curve = _Curve(job, start, session)
    if start and session.rank == 0:
        session.say(f"{job.name}: goes on after step {start} of {job.steps}")

    for step in range(start, job.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, job.steps, job.learning_rate)
        began = time.perf_counter()
        image, label = sampler.batch(step, session.rank)
        image, label = image.to(session.device), label.to(session.device)
        loaded = time.perf_counter()
        wrapped.train()
        with torch.autocast(session.device.type, torch.bfloat16, enabled=half):
            teacher_levels = None
            if teacher is not None and step >= alone:
                with torch.no_grad():
                    teacher_levels = teacher.levels(image)
            taught = time.perf_counter()
            levels = wrapped(image)
        losses = total_loss(levels, label, weights, teacher_levels)
        if not math.isfinite(losses["loss"].item()):
            raise SegdistillError(
                f"{job.name}: the loss is no number at step {step}. Lower its learning_rate, "
                "or use precision f32."
            )
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        optimizer.step()
        curve.add(
            losses, data=loaded - began, teacher=taught - loaded, total=time.perf_counter() - began
        )

        done = step + 1
        last = done == job.steps
        if done % LOG_STEPS == 0 or last:
            row = curve.row(done, optimizer.param_groups[0]["lr"], knobs["batch_size"] * session.workers)
            if done % knobs["validate_steps"] == 0 or last:
                row["val_dice"] = validate(network, val_cases, plan) if session.rank == 0 else None
            history.append(row)
            tracker.log(row)
            curve.show(row)
        if done % knobs["checkpoint_steps"] == 0 or last:
            with tempfile.TemporaryDirectory() as name:
                if session.rank == 0:
                    checkpoint.save(Path(name), network, optimizer, done, history)
                session.report(
                    {"step": done, "loss": history[-1]["loss"] if history else None}, Path(name)
                )


def _inherit(network: UNet, teacher: UNet, sampler: PatchSampler, session: Session) -> None:
    # Patches that no worker trains on, the same ones for all.
    batches = (sampler.batch(step, session.workers)[0] for step in range(_INHERIT_BATCHES))
    explained = inherit(network, teacher, [image.to(session.device) for image in batches])
    worst = min(explained, key=lambda name: explained[name])
    if session.rank == 0:
        mean = sum(explained.values()) / len(explained)
        session.say(
            f"starts from the teacher's features: {mean:.0%} of their variance kept, "
            f"least in {worst} ({explained[worst]:.0%})"
        )


def finished(folder: Path, job: Job) -> tuple[UNet, list[dict[str, Any]]]:
    """The trained network (on the CPU) and its learning curve, from the last checkpoint's folder."""
    plan = Plan.read(Path(job.plan))
    network = UNet(Architecture.scaled(job.network, job.width, plan.channels_out))
    step, history = checkpoint.restore(folder, network, None)
    if step != job.steps:
        raise SegdistillError(f"{folder}: stopped at step {step} of {job.steps}. Run 'dvc repro' again.")
    return network.eval(), history


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One cycle: up in a line for the first 5% of the steps, then down along a cosine to nearly 0."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * max(1e-3, 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware (emulated, it would be slower than f32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def validate(network: UNet, cases: list[TrainingCase], plan: Plan) -> float:
    """Mean Dice (structures present, then cases), see :func:`structure_dice`."""
    return float(np.nanmean(structure_dice(network, cases, plan), axis=1).mean())


def structure_dice(network: UNet, cases: list[TrainingCase], plan: Plan) -> NDArray[np.float64]:
    """Dice on the plan's grid, with windows that don't overlap.

    Returns:
        (cases, structures), NaN where a case's labels lack the structure.
    """
    quick = replace(plan, overlap=0.0)
    backend = TorchBackend(network)
    scores = []
    for case in cases:
        predicted = predict(case.image.astype(np.float32), quick, backend).argmax(axis=0)
        scores.append(_dice(predicted, np.asarray(case.label), plan.channels_out))
    return np.array(scores)


def _dice(predicted: np.ndarray, label: np.ndarray, classes: int) -> NDArray[np.float64]:
    pairs = np.bincount((label.astype(np.int64) * classes + predicted).ravel(), minlength=classes**2)
    table = pairs.reshape(classes, classes)
    dice = 2 * np.diag(table) / np.maximum(1, table.sum(axis=0) + table.sum(axis=1))
    present = table.sum(axis=1) > 0
    return np.asarray(np.where(present, dice, np.nan)[1:])


def _teacher(job: Job, plan: Plan, device: torch.device) -> UNet | None:
    if job.teacher is None:
        return None
    teacher = read_model(Path(job.teacher), plan).network.to(device).eval()
    return teacher.requires_grad_(False)


class _Curve:
    """Averages over the steps since the last row, and the line of progress."""

    def __init__(self, job: Job, start: int, session: Session) -> None:
        self._job, self._session = job, session
        self._sums: dict[str, float] = {}
        self._count = 0
        self._start, self._began, self._last_shown = start, time.perf_counter(), -math.inf

    def add(self, losses: Mapping[str, torch.Tensor], **seconds: float) -> None:
        values = {name: float(value.detach()) for name, value in losses.items()} | seconds
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def row(self, step: int, rate: float, samples: int) -> dict[str, Any]:
        mean = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return {
            "step": step,
            "loss": round(mean["loss"], 6),
            "supervised": round(mean["supervised"], 6),
            "distillation": round(mean["distillation"], 6),
            "val_dice": None,
            "learning_rate": rate,
            "samples_per_second": round(samples / mean["total"], 3),
            "data_share": round(mean["data"] / mean["total"], 4),
            "teacher_share": round(mean["teacher"] / mean["total"], 4),
        }

    def show(self, row: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        done = row["step"] == self._job.steps or row["val_dice"] is not None
        if self._session.rank or (now - self._last_shown < 10 and not done):
            return
        self._last_shown = now
        left = (now - self._began) / (row["step"] - self._start) * (self._job.steps - row["step"])
        dice = "" if row["val_dice"] is None else f"  val Dice {row['val_dice']:.3f}"
        self._session.say(
            f"{self._job.name}: step {row['step']} of {self._job.steps}  loss {row['loss']:.3f}{dice}  "
            f"{row['samples_per_second']:.1f} patches/s  about {left / 60:.0f} min left"
        )
