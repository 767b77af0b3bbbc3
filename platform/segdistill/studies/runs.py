"""Many short trainings: as many at a time as there are cores, each result kept once it is there."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segdistill.files import read_json, write_json
from segdistill.runtime.cpus import usable_cpus
from segdistill.runtime.plan import Plan
from segdistill.training.job import Job
from segdistill.training.launch import CPU_ALLOCATOR, run_here
from segdistill.training.loop import structure_dice
from segdistill.training.patches import read_cases

SPLIT = "val"  # the split whose scores a study may look at
_SHARES = ("data_share", "teacher_share", "student_share")


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes:
        val_dice: mean Dice (structures present, then cases) on the validation split, on the plan's
            grid, in its mode; windows don't overlap.
        structures: Dice by structure, mean over the cases that have it; None where none has.
        cases: validation cases.
        seconds_per_step: wall seconds, mean over all steps.
        data_share: share of that time in which the training waited for patches.
        teacher_share: share in which the teacher ran.
        student_share: the rest.
        seconds: wall seconds of the whole training, start and validation included; of its last leg, if
            it was interrupted.
    """

    val_dice: float
    structures: Mapping[str, float | None]
    cases: int
    seconds_per_step: float
    data_share: float
    teacher_share: float
    student_share: float
    seconds: float


def run_all(
    jobs: Sequence[Job],
    kept: Path,
    *,
    workers: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Train every job with the pipeline's own loop, or take the result of an earlier run of it.

    Runs share nothing, so each has one thread and a process to itself: two of them on two cores get
    further than one on both. A result is written as ``kept/DIGEST.json``, under the digest of all that
    decides it; a study that was interrupted goes on from there, and its unfinished runs go on from their
    checkpoints.

    Args:
        jobs: what to train, in any order.
        kept: folder of the results and checkpoints.
        workers: processes; 0: as many as the process may use cores.
        progress: told one line per result.

    Returns:
        The outcomes, in the order of ``jobs``.

    Raises:
        SegdistillError: a training failed. What others have finished stays.
    """
    kept.mkdir(parents=True, exist_ok=True)
    files = [kept / f"{job.digest()}.json" for job in jobs]
    waiting = [(job, file) for job, file in zip(jobs, files, strict=True) if not file.is_file()]
    if len(waiting) < len(jobs):
        progress(f"{len(jobs) - len(waiting)} of {len(jobs)} are there from an earlier run")
    began = time.monotonic()
    with _processes(min(workers or usable_cpus(), max(1, len(waiting)))) as pool:
        running = {pool.submit(_train, job, file): (job, file) for job, file in waiting}
        for done, future in enumerate(_results(running), start=1):
            job, file = running[future]
            outcome = _read(file)
            left = (time.monotonic() - began) / done * (len(waiting) - done)
            progress(
                f"{len(jobs) - len(waiting) + done} of {len(jobs)}: {job.name}  "
                f"val Dice {outcome.val_dice:.4f}  {outcome.seconds:.0f} s  "
                f"about {left / 60:.0f} min left"
            )
    return [_read(file) for file in files]


@contextmanager
def _processes(count: int) -> "Iterator[ProcessPoolExecutor]":
    """A pool whose processes have the allocator that training on a CPU is fastest with."""
    import torch

    wanted = {} if torch.cuda.is_available() else CPU_ALLOCATOR
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)  # read by the C library when a process starts
    pool = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),  # forking a process with threads may hang
        initializer=_start_worker,
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    else:
        pool.shutdown(wait=True)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _results(running: Mapping[Future[None], Any]) -> Iterator[Future[None]]:
    for future in as_completed(running):
        future.result()
        yield future


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)


def _train(job: Job, file: Path) -> None:
    """One training, in a process of its own; its outcome goes to ``file``."""
    began = time.monotonic()
    network, history = run_here(job, file.parent)
    plan = Plan.read(Path(job.plan))
    dice = structure_dice(network, read_cases(Path(job.data), SPLIT), plan)
    outcome = Outcome(
        val_dice=round(float(np.nanmean(dice, axis=1).mean()), 6),
        structures={
            structure.name: round(float(np.nanmean(own)), 6) if np.isfinite(own).any() else None
            for structure, own in zip(plan.structures, dice.T, strict=True)
        },
        cases=len(dice),
        seconds=round(time.monotonic() - began, 1),
        **_pace(history),
    )
    write_json(file, asdict(outcome) | {"job": job.to_json()})


def _pace(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds per step and the shares of its parts, from the rows of a learning curve."""
    ends = np.array([0, *(row["step"] for row in history)])
    steps = np.diff(ends)
    seconds = steps * np.array([row["seconds_per_step"] for row in history])
    return {"seconds_per_step": round(float(seconds.sum() / steps.sum()), 5)} | {
        name: round(float((seconds * [row[name] for row in history]).sum() / seconds.sum()), 4)
        for name in _SHARES
    }


def _read(file: Path) -> Outcome:
    body = read_json(file)
    return Outcome(**{name: body[name] for name in Outcome.__dataclass_fields__})
