"""What drawing and augmenting a batch costs beside the training step that it feeds, in CPU seconds.

A training waits for patches only if the thread that draws them falls behind. This counts what that
thread takes from the cores all the same, both sides measured in one run, on an idle machine:

    python -m benchmarks.loading --task abdominal_ct
"""

import argparse
import time
from pathlib import Path

import torch

from pipelines.params import Params, read_params
from pipelines.train import make_job
from segdistill.network.architecture import Architecture
from segdistill.network.unet import UNet
from segdistill.runtime.plan import Plan
from segdistill.training.device import has_bf16
from segdistill.training.job import Job
from segdistill.training.loop import training_cases
from segdistill.training.losses import supervised_loss
from segdistill.training.patches import Batch, PatchSampler, Small

BATCHES = 12
_SETTLE = 2  # of them first, which don't count: memory is fetched, kernels are chosen


def main() -> None:
    """Print, per member of the family and size of patch, both costs and the share of drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="brain_mri", help="whose prepared cases are there")
    task = parser.parse_args().task
    own = Path("tasks") / task / "params.yaml"
    params = read_params(own if own.exists() else Path("params.yaml"))
    print("| member | patches | drawing, CPU s a step | training, CPU s a step | drawing's share |")
    print("|---|---|--:|--:|--:|")
    for name, job in _jobs(params, task).items():
        plan = Plan.read(Path(job.plan))
        sampler = PatchSampler(
            training_cases(job),
            plan,
            batch_size=job.training.batch_size,
            foreground_share=job.training.foreground_share,
            flip_left_right=job.training.flip_left_right,
            seed=job.seed,
            small=Small.from_knobs(job.training, plan),
        )
        for full in sorted({job.training.full_share == 1, job.training.full_share > 0}):
            batches, drawing = _draw(sampler, full=full)
            training = _train(job, plan, batches)
            shape = " x ".join(map(str, batches[-1].image.shape))
            share = drawing / (drawing + training)
            print(f"| {name} | {shape} | {drawing:.3f} | {training:.3f} | {share:.1%} |", flush=True)


def _jobs(params: Params, task: str) -> dict[str, Job]:
    """The trainings of teacher and students, by name."""
    places = {"plan": Path("models") / task / "plan.json", "data": Path("data/prepared") / task}
    taught = {
        "teacher": Path("models") / task / "teacher",
        "soft_labels": Path("data/soft_labels") / task,
    }
    jobs = {"teacher": make_job(params, "teacher", None, name="teacher", **places)}
    for key in params.students:
        name = f"student-{key}"
        jobs[name] = make_job(params, "student", key, name=name, **places, **taught)
    return jobs


def _draw(sampler: PatchSampler, *, full: bool) -> tuple[list[Batch], float]:
    """The batches of some steps, and what one takes of the drawing thread, CPU s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the thread that draws ahead
    batches = [sampler.batch(step, full=full) for step in range(_SETTLE)]
    began = time.process_time()
    batches += [sampler.batch(step, full=full) for step in range(_SETTLE, BATCHES)]
    seconds = (time.process_time() - began) / (BATCHES - _SETTLE)
    torch.set_num_threads(threads)
    return batches, seconds


def _train(job: Job, plan: Plan, batches: list[Batch]) -> float:
    """What a step of a member takes of all threads, CPU s; the labels alone, no teacher."""
    knobs = job.training
    network = UNet(Architecture.scaled(job.network, job.width, plan.channels_out)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    half = knobs.precision == "bf16" and has_bf16(torch.device("cpu"))
    began = 0.0
    for number, batch in enumerate(batches):
        if number == _SETTLE:
            began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            levels = network(batch.image)
        loss = supervised_loss(levels, batch.label, knobs.dice_weight, knobs.ce_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (time.process_time() - began) / (len(batches) - _SETTLE)


if __name__ == "__main__":
    main()
