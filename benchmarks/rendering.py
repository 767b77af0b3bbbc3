"""What rendering a patch from a label map costs beside the training step that it feeds.

A patch is rendered by one thread while the network trains (``training/patches.py: ahead``), so what
counts is the processor time that it takes from the step. All are measured in turns in one run, on an
idle machine:

    python -m benchmarks.rendering --maps FOLDER
    python -m benchmarks.rendering --maps FOLDER --labels icrp110 --params tasks/abdominal_ct/params.yaml

Without label maps at hand it takes a made-up head, which has fewer tissues and costs about the same.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.params import Params, read_params
from segdistill.network.architecture import Architecture
from segdistill.network.unet import UNet
from segdistill.runtime.plan import Plan
from segdistill.simulation.rendering.knobs import RenderingKnobs
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.making import make_label_map
from segdistill.simulation.rendering.modality import RENDERINGS
from segdistill.simulation.rendering.render import render
from segdistill.simulation.rendering.tissues import read_tissues
from segdistill.sites.imports.cubes import to_cubes
from segdistill.sites.protocol import Protocol, read_protocol
from segdistill.training.launch import CPU_ALLOCATOR
from segdistill.training.losses import supervised_loss
from segdistill.volume import Volume, read_label_map
from tests.phantom import phantom_anatomy

PATCH, HEAD = (64, 64, 64), (96, 112, 96)  # voxels
WIDTH, BATCH = 0.25, 2
# FreeSurfer's codes in place of the phantom's, which are the task's own.
_FREESURFER = np.array([0, 24, 4, 3, 2, 10, 11, 17, 16, 8, 7], np.uint8)
_NORMALISATION: dict[str, dict[str, Any]] = {
    "zscore": {"scheme": "zscore"},
    "ct": {"scheme": "ct", "clip_hu": [-200.0, 300.0], "mean_hu": 60.0, "std_hu": 80.0},
}
_SETTLE = 2  # first rounds, which don't count
# What is left out, one at a time, to see what it costs.
EFFECTS: dict[str, dict[str, Any]] = {
    "warp": {"warp_mm": (0.0, 0.0)},
    "ventricle size": {"ventricle_scale": (1.0, 1.0)},
    "bias and contrast": {"bias_sd": (0.0, 0.0), "contrast_sd": (0.0, 0.0)},
    "gamma": {"gamma": 0.0},
    "blur and thick slices": {"blur_mm": (0.0, 0.0), "thick": 0.0},
    "noise": {"noise": (0.0, 0.0)},
    "skull stripping": {"skull_stripped": 0.0},
    "the table": {"table": 0.0},
    "fat": {"fat_scale": (1.0, 1.0)},
}


def main() -> None:
    """Print the medians of one thread's CPU time, ms, and the share of rendering in a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=Path, help="folder of NIfTI label maps")
    parser.add_argument("--labels", default="freesurfer", help="whose codes they have")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in CPU_ALLOCATOR.items()):
        # As in a training; the allocator reads them when the process starts.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | CPU_ALLOCATOR)  # noqa: S606
    torch.set_num_threads(1)
    params = read_params(given.params)
    protocol = read_protocol(params.task)
    plan = _plan(params, protocol)
    people = _people(given.maps, given.labels, protocol)
    knobs = RENDERINGS[plan.modality].usual
    without = {
        name: replace(knobs, **off) for name, off in EFFECTS.items() if off.keys() <= vars(knobs).keys()
    }
    work: dict[str, Callable[[int], object]] = {"a step of x1/4": _step(params, plan)}
    work["a patch"] = _renders(people, plan, knobs, PATCH)
    work["a whole head"] = _renders(people, plan, knobs, HEAD)
    work |= {
        f"a patch without {name}": _renders(people, plan, off, PATCH) for name, off in without.items()
    }
    work["a patch, every effect off"] = _renders(people, plan, knobs.still(), PATCH)
    spent: dict[str, list[float]] = {name: [] for name in work}
    for number in range(given.rounds + _SETTLE):
        for name, task in work.items():
            began = time.thread_time()
            task(number)
            spent[name].append(1e3 * (time.thread_time() - began))
    took = {name: statistics.median(times[_SETTLE:]) for name, times in spent.items()}
    print("| one thread | median, CPU ms |\n|---|--:|")
    for name, ms in took.items():
        print(f"| {name} | {ms:.1f} |")
    share = BATCH * took["a patch"] / took["a step of x1/4"]
    print(f"\nRendering {BATCH} patches takes {share:.1%} of what the step takes.")


def _plan(params: Params, protocol: Protocol) -> Plan:
    return Plan.from_json(
        {
            **asdict(params.plan),
            "task": params.task,
            "normalisation": _NORMALISATION[params.plan.normalisation],
            "size_divisor": [16, 16, 16],
            "structures": [
                {"code": code, "name": name} for code, name in sorted(protocol.structures.items())
            ],
            "label_protocol": protocol.name,
        }
    )


def _people(folder: Path | None, codes: str, protocol: Protocol) -> list[LabelMap]:
    tissues = read_tissues(protocol.task)
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            anatomy = phantom_anatomy(Path(name), size=192)
        maps = [Volume(_FREESURFER[anatomy.labels], anatomy.affine)]
    else:
        maps = [to_cubes(read_label_map(path)) for path in sorted(folder.glob("*.nii*"))[:4]]
    return [make_label_map(labels, protocol.maps[codes], tissues) for labels in maps]


def _renders(
    people: list[LabelMap], plan: Plan, knobs: RenderingKnobs, size: tuple[int, int, int]
) -> Callable[[int], object]:
    def once(number: int) -> object:
        random = np.random.default_rng(number)
        person = people[number % len(people)]
        return render(person, plan, knobs, random, patch_size=size, foreground_share=0.67)

    return once


def _step(params: Params, plan: Plan) -> Callable[[int], object]:
    network = UNet(Architecture.scaled(params.network, WIDTH, plan.channels_out)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    knobs = params.training
    image = torch.randn(BATCH, 1, *PATCH)
    label = torch.randint(plan.channels_out, (BATCH, *PATCH))

    def once(number: int) -> object:
        levels = network(image)
        loss = supervised_loss(levels, label, knobs.dice_weight, knobs.ce_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    return once


if __name__ == "__main__":
    main()
