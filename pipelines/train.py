"""Stages teacher, students and controls: train one network of the family."""

import argparse
import csv
import io
from pathlib import Path

import yaml

from segdistill.files import atomic_path, read_json
from segdistill.interop.ready import ready_network, take_teacher
from segdistill.network.model import CARD, write_model
from segdistill.registry.store import end_run, open_store, start_run
from segdistill.runtime.plan import Plan
from segdistill.training.job import Job
from segdistill.training.launch import run, run_here


def main() -> None:
    """Train as the arguments and params.yaml say, and write the model and its learning curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["teacher", "student", "control"])
    parser.add_argument("key", nargs="?", help="name of the student in params.yaml, e.g. x4")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--here", action="store_true", help="in this process, without Ray")
    args = parser.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text())
    ready, network = params["teacher"]["ready"], params["network"]
    if ready and args.role == "teacher":
        model = take_teacher(Path(ready), Plan.read(args.plan), args.out)
        with atomic_path(args.curves) as partial:
            partial.write_text("step,loss\n")  # a curve without a point: nothing was trained here
        print(f"{args.out}: {model.name}, {model.parameters:,} parameters, imported from {ready}")
        return
    if ready:
        network = ready_network(Path(ready), network)
    own = params["teacher"] if args.role == "teacher" else params["students"][args.key]
    distillation = dict(params["distillation"])
    if args.role != "student":
        distillation = {name: distillation[name] for name in ("dice_weight", "ce_weight")}
    name = args.out.name
    job = Job(
        name=name,
        role=args.role,
        width=float(own.get("width", 1.0)),
        steps=own["steps"],
        learning_rate=own["learning_rate"],
        seed=params["seed"],
        plan=str(args.plan.resolve()),
        data=str(args.data.resolve()),
        teacher=str(args.teacher.resolve()) if args.teacher else None,
        network=network,
        training=params["training"],
        distillation=distillation,
    )
    record = job.to_json() | {"plan": None, "data": None, "teacher": None, "tracking": None}
    record = {key: value for key, value in record.items() if value is not None}
    if args.teacher:
        record["teacher_sha256"] = read_json(args.teacher / CARD)["weights_sha256"]

    store = open_store(Path.cwd())
    run_id = start_run(
        store,
        f"{params['task']}/{name}",
        params={
            f"{part}.{key}": value
            for part in ("network", "training", "distillation")
            for key, value in record[part].items()
        }
        | {"width": job.width, "steps": job.steps, "learning_rate": job.learning_rate, "seed": job.seed},
        tags={"task": params["task"], "role": job.role},
        key=job.digest(),
    )
    job = Job(**(job.to_json() | {"tracking": {"uri": store.uri, "run_id": run_id}}))
    try:
        network, history = (run_here if args.here else run)(job, Path("runs"))
    except BaseException:
        end_run(store, run_id, "FAILED")
        raise
    write_model(
        args.out,
        network,
        Plan.read(args.plan),
        name=name,
        role=job.role,
        width=job.width,
        training=record,
    )
    with atomic_path(args.curves) as partial:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        partial.write_text(text.getvalue())
    end_run(store, run_id)
    print(f"{args.out}: {name}, {history[-1]['step']} steps, val Dice {history[-1]['val_dice']:.3f}")


if __name__ == "__main__":
    main()
