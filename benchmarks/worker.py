"""One pipeline of this environment.

``python -m benchmarks.worker ours BUNDLE SETTING`` is the runtime with a setting (JSON);
``python -m benchmarks.worker monai MODEL PLAN`` is what a MONAI user would write: the network in
torch, MONAI's transforms around MONAI's sliding windows.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.talk import answer


def ours(bundle: str, setting: str) -> Callable[[str, str], dict[str, Any]]:
    """The runtime; steps are (wall, CPU) seconds."""
    from segdistill.runtime.bundle import Bundle
    from segdistill.runtime.segment import Segmentator
    from segdistill.runtime.setting import Setting

    segmentator = Segmentator(
        Bundle.read(Path(bundle)), setting=Setting.from_json(json.loads(setting), "setting")
    )
    return lambda scan, labels: segmentator.segment_file(Path(scan), Path(labels)).timings


def monai(model: str, plan_file: str) -> Callable[[str, str], None]:
    """Torch and MONAI, eager, float32, with Gaussian windows of the plan's size and overlap."""
    import torch
    from monai import transforms
    from monai.data import MetaTensor
    from monai.inferers import SlidingWindowInferer

    from segdistill.network.model import read_model
    from segdistill.runtime.cpus import usable_cpus
    from segdistill.runtime.plan import Plan

    torch.set_num_threads(usable_cpus())
    plan = Plan.read(Path(plan_file))
    network = read_model(Path(model), plan).network
    prepare = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.CropForeground(allow_smaller=True),
            transforms.Orientation("RAS", labels=None),
            transforms.Spacing(plan.spacing_mm, mode="bilinear"),
            transforms.NormalizeIntensity(nonzero=True),
        ]
    )
    windows = SlidingWindowInferer(
        plan.patch_size, sw_batch_size=1, overlap=plan.overlap, mode="gaussian"
    )

    def segment(scan: str, labels: str) -> None:
        with torch.inference_mode():
            image = prepare(scan)
            logits = windows(image[None], network)[0]
            found = MetaTensor(logits, meta=image.meta, applied_operations=image.applied_operations)
            back = prepare.transforms[3].inverse(found)
            codes = MetaTensor(
                back.argmax(dim=0, keepdim=True).to(torch.uint8),
                meta=back.meta,
                applied_operations=back.applied_operations,
            )
            for step in (prepare.transforms[2], prepare.transforms[1]):
                codes = step.inverse(codes)
            out = Path(labels)
            transforms.SaveImage(
                output_dir=out.parent,
                output_postfix="",
                output_dtype="uint8",
                separate_folder=False,
                print_log=False,
            )(codes, filename=out.with_name(out.name.removesuffix(".nii.gz")))

    return segment


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    answer({"ours": ours, "monai": monai}[kind](*words))
