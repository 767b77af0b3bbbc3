"""Stage export: every model of the family as a bundle, checked against torch on real cases."""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import segdistill
from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import SegdistillError, atomic_folder, subfolders
from segdistill.network.export import activations, agreement, export_onnx
from segdistill.network.model import MODEL_JSON, Model, TorchBackend, read_model
from segdistill.network.quantise import quantise
from segdistill.runtime.backend import OnnxBackend
from segdistill.runtime.bundle import write_bundle
from segdistill.runtime.plan import Plan
from segdistill.runtime.windows import predict
from segdistill.training.patches import TrainingCase, read_cases


def main() -> None:
    """Export teacher, students and controls; all bundles appear together or none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", type=Path, required=True, help="folder with plan.json and the models"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="prepared cases; those of split val are used"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--all", action="store_true", help="the models that are there, not those of params.yaml"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    args = parser.parse_args()
    params = read_params(args.params)
    plan = Plan.read(args.models / "plan.json")
    cases = read_cases(args.data, "val")[: params.export.parity_cases]
    training = read_cases(args.data, "train", unlabelled=True) or read_cases(args.data, "val")
    count = params.export.calibration_cases
    calibration = training[:: max(1, len(training) // count)][:count]
    names = (
        [path.name for path in subfolders(args.models) if (path / MODEL_JSON).is_file()]
        if args.all
        else [
            "teacher",
            *(f"{role}-{key}" for key in params.students for role in ("student", "control")),
        ]
    )
    with atomic_folder(args.out) as partial:
        for name in names:
            model = read_model(args.models / name, plan)
            # Controls are compared and never served.
            share = _export(
                model,
                plan,
                cases,
                [] if model.role == "control" else calibration,
                partial / name,
                params.export.parity_min,
            )
            print(
                f"{args.out / name}: {model.parameters:,} parameters, agrees with torch on {share:.4%}"
            )


def _export(
    model: Model,
    plan: Plan,
    cases: list[TrainingCase],
    calibration: list[TrainingCase],
    folder: Path,
    parity_min: float,
) -> float:
    with tempfile.TemporaryDirectory() as temporary:
        onnx = Path(temporary) / "model.onnx"
        export_onnx(model.network, plan, onnx)
        exported, original = OnnxBackend(onnx), TorchBackend(model.network)
        worst = min(
            agreement(predict(image, plan, exported), predict(image, plan, original))
            for image in (case.image.astype(np.float32) for case in cases)
        )
        if worst < parity_min:
            raise SegdistillError(
                f"{model.name}: ONNX and torch agree on only {worst:.4%} of the voxels of a case, and "
                f"export.parity_min asks for {parity_min:.2%}. Nothing was written."
            )
        int8 = Path(temporary) / "model.int8.onnx"
        if calibration:
            quantise(onnx, plan, (case.image for case in calibration), int8)
        write_bundle(
            folder,
            onnx,
            plan,
            {
                "task": plan.task,
                "name": model.name,
                "role": model.role,
                "width": model.width,
                "parameters": model.parameters,
                "macs": model.macs,
                "activations": round(activations(model.network, plan.patch_size), 2),
                "training": dict(model.training),
                "weights_sha256": model.weights_sha256,
                "onnx_torch_agreement": round(worst, 6),
                "created_by": f"segdistill {segdistill.__version__}",
            },
            int8 if calibration else None,
        )
    return worst


if __name__ == "__main__":
    run_stage(main)
