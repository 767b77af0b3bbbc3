"""A toy task that trains in seconds: two bright balls of different brightness in noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from segdistill.network.architecture import NetworkKnobs
from segdistill.runtime.plan import Normalisation, Plan, Structure
from segdistill.simulation.rendering.knobs import USUAL
from segdistill.training.distillation.knobs import DistillationKnobs
from segdistill.training.job import Job
from segdistill.training.knobs import TrainingKnobs

SIZE = 24
NETWORK = NetworkKnobs(
    base_channels=8,
    max_channels=32,
    stages=3,
    stem_stride=1,
    norm="instance",
    min_channels=2,
    deep_supervision=1,
)
TRAINING = TrainingKnobs(
    batch_size=2,
    full_share=1.0,
    small_patch_size=(8, 8, 8),
    small_batch_size=4,
    workers=1,
    weight_decay=0.01,
    precision="f32",
    foreground_share=0.67,
    flip_left_right=True,
    dice_weight=1.0,
    ce_weight=1.0,
    ema=0.0,
    checkpoint_steps=5,
    validate_steps=1000,
    warm_up_steps=1,
    decay_share=0.95,
    patience=0,
    flat=0.002,
)
DISTILLATION = DistillationKnobs(
    inherit=False,
    teaching="live",
    logit_weight=1.0,
    region_weight=0.0,
    context_weight=0.0,
    temperature=2.0,
    warm_up_steps=0,
)


def toy_data(folder: Path) -> tuple[Path, Path]:
    """Write plan.json and eight prepared cases; returns (plan file, data folder)."""
    plan = Plan(
        task="toy",
        modality="mri",
        orientation="RAS",
        spacing_mm=(2.0, 2.0, 2.0),
        foreground="above_mean",
        normalisation=Normalisation("zscore"),
        patch_size=(16, 16, 16),
        size_divisor=(4, 4, 4),
        mode="windows",
        overlap=0.5,
        structures=(Structure(1, "bright"), Structure(2, "brighter")),
        label_protocol="toy",
    )
    data = folder / "data"
    data.mkdir(parents=True)
    plan.write(folder / "plan.json")
    random = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"))
    index = []
    for number in range(8):
        label = np.zeros((SIZE,) * 3, np.uint8)
        for channel in (1, 2):
            centre = random.uniform(7, SIZE - 7, 3)
            label[((axes - centre[:, None, None, None]) ** 2).sum(0) < random.uniform(4, 6) ** 2] = (
                channel
            )
        image = label * 1.5 + random.normal(0, 0.3, label.shape)
        case = f"toy-{number}"
        np.save(data / f"{case}.image.npy", image[None].astype(np.float16))
        np.save(data / f"{case}.label.npy", label)
        split = "train" if number < 6 else "val"
        index.append(
            {
                "case": case,
                "site": "toy",
                "subject": case,
                "split": split,
                "labelled": True,
                "shape": [SIZE] * 3,
            }
        )
    (data / "index.json").write_text(json.dumps(index))
    return folder / "plan.json", data


def toy_job(folder: Path, **changes: Any) -> Job:
    """A job on the toy data in ``folder`` (made if it isn't there)."""
    plan, data = folder / "plan.json", folder / "data"
    if not plan.exists():
        toy_data(folder)
    body: dict[str, Any] = {
        "name": "teacher",
        "role": "teacher",
        "width": 1.0,
        "steps": 20,
        "learning_rate": 0.01,
        "seed": 7,
        "plan": str(plan),
        "data": str(data),
        "teacher": None,
        "soft_labels": None,
        "start": None,
        "network": NETWORK,
        "training": TRAINING,
        "rendering": USUAL,
        "distillation": None,
    }
    return Job(**(body | changes))
