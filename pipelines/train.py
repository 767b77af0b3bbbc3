"""Stages teacher, students and controls: train one network of the family."""

import argparse
import csv
import io
from dataclasses import replace
from pathlib import Path

from pipelines.params import Params, StudentKnobs, read_params
from pipelines.stage import run_stage
from segdistill.files import atomic_path, read_json
from segdistill.interop.ready import ready_network, take_teacher
from segdistill.network.model import MODEL_JSON, Role, write_model
from segdistill.registry.commit import commit_of
from segdistill.registry.store import end_run, open_store, start_run
from segdistill.runtime.plan import Plan
from segdistill.training.job import Job
from segdistill.training.launch import run, run_here
from segdistill.training.schedule import Schedule


def main() -> None:
    """Train as the arguments and params.yaml say, and write the model and its learning curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["teacher", "student", "control"])
    parser.add_argument("key", nargs="?", help="name of the student in params.yaml, e.g. x4")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="folder of the teacher's model")
    parser.add_argument("--soft-labels", type=Path, help="folder of the teacher's soft labels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--label", help="what sets the run apart from the pipeline's own of this name")
    parser.add_argument("--here", action="store_true", help="in this process, without Ray")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    args = parser.parse_args()
    params = read_params(args.params)
    ready = params.teacher.folder
    if ready and args.role == "teacher":
        model = take_teacher(ready, Plan.read(args.plan), args.out)
        with atomic_path(args.curves) as partial:
            partial.write_text("step,loss\n")  # a curve without a point: nothing was trained here
        print(f"{args.out}: {model.name}, {model.parameters:,} parameters, imported from {ready}")
        return
    name = args.out.name
    run_name = f"{args.label}-{name}" if args.label else name
    job = make_job(
        params,
        args.role,
        args.key,
        name=run_name,
        plan=args.plan,
        data=args.data,
        teacher=args.teacher,
        soft_labels=args.soft_labels,
    )
    places = dict.fromkeys(("plan", "data", "teacher", "soft_labels", "start", "tracking"))
    record = {key: value for key, value in (job.to_json() | places).items() if value is not None}
    record["network"] = {key: value for key, value in record["network"].items() if value != ()}
    record["git_commit"] = commit_of(Path.cwd())
    if args.teacher:
        record["teacher_sha256"] = read_json(args.teacher / MODEL_JSON)["weights_sha256"]
    if job.start:
        start = read_json(Path(job.start) / MODEL_JSON)
        record["start"] = {key: start[key] for key in ("name", "weights_sha256", "plan_sha256")}

    store = open_store(Path.cwd())
    run_id = start_run(
        store,
        f"{params.task}/{run_name}",
        params={
            f"{part}.{key}": value
            for part in ("network", "training", "rendering", "distillation")
            for key, value in record.get(part, {}).items()
        }
        | {"width": job.width, "steps": job.steps, "learning_rate": job.learning_rate, "seed": job.seed},
        tags={"task": params.task, "role": job.role},
        key=job.digest(),
    )
    job = replace(job, tracking={"uri": store.uri, "run_id": run_id})
    try:
        network, history = (run_here if args.here else run)(job, Path("runs") / params.task)
    except BaseException:
        end_run(store, run_id, "FAILED")
        raise
    record["schedule"] = Schedule.of(job.training, job.steps, history).record()
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
    print(f"{args.out}: {run_name}, {history[-1]['step']} steps, val Dice {history[-1]['val_dice']:.3f}")


def make_job(
    params: Params,
    role: Role,
    key: str | None,
    *,
    name: str,
    plan: Path,
    data: Path,
    teacher: Path | None = None,
    soft_labels: Path | None = None,
) -> Job:
    """The training of one family member as params.yaml describes it.

    Args:
        params: the task's knobs.
        role: ``teacher``, ``student`` or ``control``.
        key: name of the student in params.yaml, e.g. ``x4``; None for the teacher.
        name: of the member, e.g. ``student-x4``.
        plan: plan.json.
        data: folder of prepared cases.
        teacher: folder of the teacher's model, for a student.
        soft_labels: folder of the teacher's soft labels, for a student.
    """
    own = params.teacher if role == "teacher" else params.student(key)
    ready = params.teacher.folder
    return Job(
        name=name,
        role=role,
        width=own.width if isinstance(own, StudentKnobs) else 1.0,
        steps=own.steps,
        learning_rate=own.learning_rate,
        seed=params.seed,
        plan=str(plan.resolve()),
        data=str(data.resolve()),
        teacher=str(teacher.resolve()) if teacher else None,
        soft_labels=str(soft_labels.resolve()) if soft_labels else None,
        start=str(Path(params.teacher.start).resolve())
        if role == "teacher" and params.teacher.start
        else None,
        network=ready_network(ready, params.network) if ready else params.network,
        training=params.training,
        rendering=params.rendering,
        distillation=params.distillation if role == "student" else None,
    )


if __name__ == "__main__":
    run_stage(main)
