"""Bundles whose network is known in closed form: it puts thresholds on intensities. No torch needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdistill.runtime.bundle import Bundle, write_bundle
from segdistill.runtime.plan import Normalisation, Plan, Structure
from segdistill.volume import Volume, write_volume

# Normalisation that leaves intensities as they are, so that thresholds are in the scan's own units.
AS_IS = Normalisation("ct", clip_hu=(-1e6, 1e6), mean_hu=0.0, std_hu=1.0)


def make_plan(count: int = 1, **changes: Any) -> Plan:
    """A small plan, codes 1..count, intensities left as they are; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "task": "brain_mri",
        "modality": "mri",
        "orientation": "RAS",
        "spacing_mm": (2.0, 2.0, 2.0),
        "foreground": "nonzero",
        "normalisation": AS_IS,
        "patch_size": (16, 16, 16),
        "size_divisor": (4, 4, 4),
        "mode": "windows",
        "overlap": 0.5,
        "structures": tuple(Structure(code, f"structure_{code}") for code in range(1, count + 1)),
        "label_protocol": "test",
    }
    return Plan(**{**fields, **changes})


def threshold_model(path: Path, thresholds: Sequence[float]) -> Path:
    """Write a network that gives channel k where thresholds[k-1] <= intensity < thresholds[k].

    One 1x1x1 convolution: channel k is k * x - (sum of the first k thresholds), so the largest
    channel changes from k - 1 to k at thresholds[k - 1]. ``thresholds`` rise.
    """
    channels = len(thresholds) + 1
    slopes = np.arange(channels, dtype=np.float32).reshape(channels, 1, 1, 1, 1)
    offsets = -np.concatenate([[0.0], np.cumsum(thresholds)]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["scan", "weight", "bias"], ["logits"])],
        "thresholds",
        [helper.make_tensor_value_info("scan", TensorProto.FLOAT, [1, 1, "X", "Y", "Z"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, channels, "X", "Y", "Z"])],
        [numpy_helper.from_array(slopes, "weight"), numpy_helper.from_array(offsets, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def threshold_bundle(
    folder: Path,
    thresholds: Sequence[float] = (100.0,),
    *,
    provenance: dict[str, Any] | None = None,
    **plan_changes: Any,
) -> Bundle:
    """Write a bundle around :func:`threshold_model`.

    Args:
        folder: where the bundle goes.
        thresholds: in the scan's own units (unless ``normalisation`` is changed); one structure each.
        provenance: fields to add or replace.
        plan_changes: fields of the plan to replace, e.g. ``mode="whole"``.
    """
    plan = make_plan(len(thresholds), **plan_changes)
    model = threshold_model(folder.parent / f".{folder.name}.onnx", thresholds)
    facts = {
        "task": plan.task,
        "name": "student-x4",
        "role": "student",
        "width": 0.25,
        "parameters": 2 * (len(thresholds) + 1),
        "macs": 1,
        "created_by": "tests",
        "git_commit": "0" * 40,
    }
    try:
        return write_bundle(folder, model, plan, {**facts, **(provenance or {})})
    finally:
        model.unlink()


def ball_scan(
    shape: tuple[int, int, int] = (40, 36, 32),
    affine: NDArray[np.float64] | None = None,
    radius_mm: float = 14.0,
    inside: float = 200.0,
    outside: float = 10.0,
) -> tuple[Volume, NDArray[np.bool_]]:
    """A scan with a bright ball in its middle, and the ball as a mask on the scan's grid."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    place = (index - (np.array(shape) - 1) / 2) @ affine[:3, :3].T
    mask = np.linalg.norm(place, axis=-1) <= radius_mm
    return Volume(np.where(mask, np.float32(inside), np.float32(outside)), affine), mask


def ball_file(path: Path, **ball: Any) -> NDArray[np.bool_]:
    """Write :func:`ball_scan` to ``path`` and return the mask."""
    volume, mask = ball_scan(**ball)
    write_volume(path, volume.array, volume.affine)
    return mask
