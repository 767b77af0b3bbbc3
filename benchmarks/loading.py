"""What drawing and augmenting a batch costs beside the training step that it feeds, in CPU seconds.

A training waits for patches only if the thread that draws them falls behind. This counts what that
thread takes from the cores all the same, both sides measured in one run, on an idle machine:

    python -m benchmarks.loading --task abdominal_ct
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from segdistill.network.architecture import Architecture
from segdistill.network.unet import UNet
from segdistill.runtime.plan import Plan
from segdistill.training.device import has_bf16
from segdistill.training.losses import supervised_loss
from segdistill.training.patches import Batch, PatchSampler, Small, read_cases

BATCHES = 12
_SETTLE = 2  # of them first, which don't count: memory is fetched, kernels are chosen


def main() -> None:
    """Print, per member of the family and size of patch, both costs and the share of drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="brain_mri", help="whose prepared cases are there")
    task = parser.parse_args().task
    own = Path("tasks") / task / "params.yaml"
    params = yaml.safe_load((own if own.exists() else Path("params.yaml")).read_text())
    plan = Plan.read(Path("models") / task / "plan.json")
    cases = read_cases(Path("data/prepared") / task, "train", soft=Path("data/soft_labels") / task)
    members = {"teacher": params["teacher"]} | {f"x{k}": v for k, v in params["students"].items()}
    steps = max(member["steps"] for member in members.values())
    small = Small.from_knobs(params["training"], steps, plan)
    sampler = PatchSampler(
        cases,
        plan,
        batch_size=params["training"]["batch_size"],
        foreground_share=params["training"]["foreground_share"],
        flip_left_right=params["training"]["flip_left_right"],
        seed=params["seed"],
        small=small,
    )
    print("| member | patches | drawing, CPU s a step | training, CPU s a step | drawing's share |")
    print("|---|---|--:|--:|--:|")
    for first in sorted({0, small.until}):
        batches, drawing = _draw(sampler, range(first, first + BATCHES))
        shape = " x ".join(map(str, batches[-1].image.shape))
        for name, member in members.items():
            training = _train(params, member, plan, batches)
            share = drawing / (drawing + training)
            print(f"| {name} | {shape} | {drawing:.3f} | {training:.3f} | {share:.1%} |", flush=True)


def _draw(sampler: PatchSampler, steps: range) -> tuple[list[Batch], float]:
    """The batches of some steps, and what one takes of the drawing thread, CPU s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the thread that draws ahead
    batches = [sampler.batch(step) for step in steps[:_SETTLE]]
    began = time.process_time()
    batches += [sampler.batch(step) for step in steps[_SETTLE:]]
    seconds = (time.process_time() - began) / (len(steps) - _SETTLE)
    torch.set_num_threads(threads)
    return batches, seconds


def _train(
    params: Mapping[str, Any], member: Mapping[str, Any], plan: Plan, batches: list[Batch]
) -> float:
    """What a step of a member takes of all threads, CPU s; the labels alone, no teacher."""
    knobs = params["training"]
    width = float(member.get("width", 1.0))
    network = UNet(Architecture.scaled(params["network"], width, plan.channels_out)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    half = knobs["precision"] == "bf16" and has_bf16(torch.device("cpu"))
    began = 0.0
    for number, batch in enumerate(batches):
        if number == _SETTLE:
            began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            levels = network(batch.image)
        loss = supervised_loss(levels, batch.label, knobs["dice_weight"], knobs["ce_weight"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return (time.process_time() - began) / (len(batches) - _SETTLE)


if __name__ == "__main__":
    main()
