"""Many trainings, some of which follow from others' results: each result is kept once it is there."""

import multiprocessing
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segdistill.files import read_json, write_json
from segdistill.runtime.cpus import usable_cpus
from segdistill.runtime.plan import Plan
from segdistill.training.job import Job
from segdistill.training.launch import CPU_ALLOCATOR, run_here
from segdistill.training.loop import structure_dice
from segdistill.training.patches import read_cases

SPLIT = "val"  # the split whose scores a study may look at
Name = TypeVar("Name", bound=Hashable)
_SHARES = ("data_share", "teacher_share", "student_share")


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes:
        val_dice: mean Dice (structures present, then cases) on the validation split, on the plan's
            grid, in its mode; windows don't overlap.
        structures: Dice by structure, mean over the cases that have it; None where none has.
        subjects: Dice by validation subject, mean over the subject's cases.
        cases: validation cases.
        steps: optimiser steps that were taken.
        learning_rate: the peak.
        seconds_per_step: wall seconds, mean over all steps.
        data_share: share of that time in which the training waited for patches.
        teacher_share: share in which the teacher ran.
        student_share: the rest.
        seconds: wall seconds of the whole training, start and validation included; of its last leg, if
            it was interrupted.
    """

    val_dice: float
    structures: Mapping[str, float | None]
    subjects: Mapping[str, float]
    cases: int
    steps: int
    learning_rate: float
    seconds_per_step: float
    data_share: float
    teacher_share: float
    student_share: float
    seconds: float


def run_all(
    plan: Callable[[Mapping[Name, Outcome]], Mapping[Name, Job]],
    kept: Path,
    *,
    workers: int = 0,
    progress: Callable[[str], None] = lambda _: None,
    changed: Callable[[Mapping[Name, Outcome]], None] = lambda _: None,
) -> dict[Name, Outcome]:
    """Train every job with the pipeline's own loop, or take the result of an earlier run of it.

    Runs share nothing, so each has a process and a share of the cores to itself: two of them on two
    cores get further than one on both. A result is written as ``kept/DIGEST.json``, under the digest of
    all that decides it; a study that was interrupted goes on from there, and its unfinished runs go on
    from their checkpoints.

    Args:
        plan: given the outcomes so far, the jobs that are known by then, most urgent first. A job whose
            name was there before is the same one.
        kept: folder of the results and checkpoints.
        workers: processes; 0: as many as the process may use cores.
        progress: told one line per result.
        changed: told the outcomes so far whenever there are more.

    Returns:
        The outcomes by the names of the plan.

    Raises:
        SegdistillError: a training failed. What others have finished stays.
    """
    kept.mkdir(parents=True, exist_ok=True)
    workers = workers or usable_cpus()
    outcomes: dict[Name, Outcome] = {}
    files: dict[Name, Path] = {}
    running: dict[Future[None], Name] = {}
    with _processes(workers) as pool:
        while True:
            jobs = plan(outcomes)
            files |= {
                name: kept / f"{job.digest()}.json" for name, job in jobs.items() if name not in files
            }
            there = [name for name in jobs if name not in outcomes and files[name].is_file()]
            if there:
                outcomes |= {name: _read(files[name]) for name in there}
                changed(outcomes)
                continue  # more jobs may follow from these
            waiting = [name for name in jobs if name not in outcomes and name not in running.values()]
            for name in waiting[: workers - len(running)]:
                running[pool.submit(_train, jobs[name], files[name])] = name
            if not running:
                return outcomes
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                future.result()
                outcome = _read(files[name])
                progress(
                    f"{len(outcomes) + 1} of at least {len(jobs)}: {jobs[name].name}  val Dice "
                    f"{outcome.val_dice:.4f}  {outcome.steps} steps  {outcome.seconds:.0f} s"
                )


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
        initargs=(max(1, usable_cpus() // count),),
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


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _train(job: Job, file: Path) -> None:
    """One training, in a process of its own; its outcome goes to ``file``."""
    began = time.monotonic()
    network, history = run_here(job, file.parent)
    plan = Plan.read(Path(job.plan))
    cases = read_cases(Path(job.data), SPLIT)
    dice = structure_dice(network, cases, plan)
    by_case = dict(zip((case.case for case in cases), np.nanmean(dice, axis=1), strict=True))
    outcome = Outcome(
        val_dice=round(float(np.mean(list(by_case.values()))), 6),
        structures={
            structure.name: round(float(np.nanmean(own)), 6) if np.isfinite(own).any() else None
            for structure, own in zip(plan.structures, dice.T, strict=True)
        },
        subjects=_by_subject(Path(job.data), by_case),
        cases=len(dice),
        steps=history[-1]["step"],
        learning_rate=job.learning_rate,
        seconds=round(time.monotonic() - began, 1),
        **_pace(history),
    )
    write_json(file, asdict(outcome) | {"job": job.to_json()})


def _by_subject(data: Path, by_case: Mapping[str, float]) -> dict[str, float]:
    """Mean over the cases of a subject, which are no independent ones."""
    subjects: dict[str, list[float]] = {}
    for entry in read_json(data / "index.json"):
        if entry["case"] in by_case:
            subjects.setdefault(entry["subject"], []).append(by_case[entry["case"]])
    return {subject: round(float(np.mean(scores)), 6) for subject, scores in subjects.items()}


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
