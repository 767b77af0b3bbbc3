"""A teacher's soft labels, worked out once for all students and kept small.

Four bytes a voxel, whatever the number of classes: the two likeliest classes and their probabilities in
255ths. What is left of the probability is spread over the other classes evenly. With 11 classes that is
a tenth of float32, and any patch can be cut out of the file without reading the rest.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill.files import SegdistillError, atomic_folder, write_json
from segdistill.network.model import Model, TorchBackend
from segdistill.runtime.plan import Plan
from segdistill.runtime.windows import predict
from segdistill.training.device import has_bf16
from segdistill.training.patches import read_cases

_OVERLAP = 0.25  # of the teacher's windows: half of the served 0.5 costs a third of its passes


def compress(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(K, X, Y, Z) probabilities as (4, X, Y, Z): likeliest class, the second, and 255 times their p."""
    if not 2 <= len(probabilities) <= 256:
        raise SegdistillError(f"soft labels need 2 to 256 classes, not {len(probabilities)}.")
    top = np.argpartition(probabilities, -2, axis=0)[-2:]
    values = np.take_along_axis(probabilities, top, axis=0)
    order = np.argsort(-values, axis=0, kind="stable")
    top, values = np.take_along_axis(top, order, axis=0), np.take_along_axis(values, order, axis=0)
    return np.concatenate([top.astype(np.uint8), np.rint(255 * values).astype(np.uint8)])


def expand(compact: Tensor, classes: int, temperature: float) -> Tensor:
    """The probabilities again, at a temperature: (B, K, ...) float32 from (B, 4, ...) uint8.

    At temperature T they are p^(1/T), brought to a sum of 1: what dividing the logits by T gives.
    """
    top, values = compact[:, :2].long(), compact[:, 2:].float() / 255
    rest = (1 - values.sum(dim=1, keepdim=True)).clamp(min=0) / max(1, classes - 2)
    shape = (len(compact), classes, *compact.shape[2:])
    power = 1 / temperature
    p = rest.pow(power).expand(shape).clone().scatter_(1, top, values.pow(power))
    return p / p.sum(dim=1, keepdim=True)


def write_soft_labels(
    teacher: Model, plan: Plan, data: Path, out: Path, progress: Callable[[int, int], None] | None = None
) -> int:
    """Run the teacher over every training case, labelled or not; write ``out/CASE.soft.npy`` of each.

    Args:
        teacher: the trained teacher.
        plan: its plan.
        data: folder of prepared cases.
        out: folder to write; it appears whole or not at all.
        progress: called with (cases done, cases) after each.

    Returns:
        The number of cases.

    Raises:
        SegdistillError: no training case, one that the teacher gives no numbers for, or a full disk.
    """
    cases = read_cases(data, "train", unlabelled=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = TorchBackend(teacher.network.to(device))
    windows = replace(plan, overlap=min(plan.overlap, _OVERLAP))
    with atomic_folder(out) as folder:
        for done, case in enumerate(cases, start=1):
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
                    logits = predict(case.image.astype(np.float32), windows, backend)
            except SegdistillError as error:
                raise SegdistillError(f"{case.case}: {error}") from error
            np.save(folder / f"{case.case}.soft.npy", compress(_softmax(logits)), allow_pickle=False)
            if progress:
                progress(done, len(cases))
        write_json(
            folder / "index.json", {"teacher_sha256": teacher.weights_sha256, "cases": len(cases)}
        )
    return len(cases)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = torch.softmax(torch.from_numpy(logits), dim=0).numpy()
    return probabilities
