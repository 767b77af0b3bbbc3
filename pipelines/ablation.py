"""Study ``ablation``: what each part of distillation adds, on the validation split alone."""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.params import STEPS_FACTOR, AblationKnobs, Params, Row, read_params, read_studies
from pipelines.stage import run_stage
from pipelines.train import make_job
from segdistill.evaluation import plots
from segdistill.evaluation.score import write_table
from segdistill.files import write_json
from segdistill.studies.ablation import Run, summarise
from segdistill.studies.runs import Outcome, run_all
from segdistill.training.job import Job

_SHARES = ("data_share", "teacher_share", "student_share")


def main() -> None:
    """Read the parameters, train what isn't there yet, write table, summary and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the teacher's model")
    parser.add_argument("--soft-labels", type=Path, required=True, help="folder of its soft labels")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared cases")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--study", type=Path, default=Path("studies/params.yaml"))
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    study = read_studies(arguments.study).ablation
    wanted = study_jobs(
        params,
        study,
        teacher=arguments.teacher,
        soft_labels=arguments.soft_labels,
        plan=arguments.plan,
        data=arguments.data,
    )
    outcomes = run_all(
        list(wanted.values()),
        arguments.runs / params.task / "ablation",
        workers=arguments.workers,
        progress=lambda line: print(f"ablation: {line}", file=sys.stderr, flush=True),
    )
    runs = [Run(*key, outcome) for key, outcome in zip(wanted, outcomes, strict=True)]
    summary = summarise(runs, list(study.rows)) | {
        "task": params.task,
        "steps": {width: own.steps for width, own in study.widths.items()},
        "settings": {row: _settings(own) for row, own in study.rows.items()},
    }
    table = pd.DataFrame([_row(run) for run in runs])
    decimals = {name: 5 for name in map(str, table) if name.startswith("dice")}
    write_table(
        arguments.out / "ablation.csv",
        table,
        {**decimals, "seconds_per_step": 4, "seconds": 1} | dict.fromkeys(_SHARES, 4),
    )
    plots.save(plots.ablation(summary), arguments.out / "ablation.png")
    write_json(arguments.out / "ablation.json", summary)
    for line in summary["overall"]:
        print(f"{line['row']:<22} val Dice {line['mean']:.4f}, mean over widths and seeds")
    print(f"ablation: the rule chooses {summary['chosen']}; {arguments.out / 'ablation.json'}")


def study_jobs(
    params: Params,
    study: AblationKnobs,
    *,
    teacher: Path,
    soft_labels: Path,
    plan: Path,
    data: Path,
) -> dict[tuple[str, str, int], Job]:
    """The trainings of the study by (row, width, seed).

    Args:
        params: the task's knobs.
        study: the study's.
        teacher: folder of the teacher's model.
        soft_labels: folder of the teacher's soft labels, which the rows that need them are given.
        plan: plan.json.
        data: folder of prepared cases.
    """
    jobs = {}
    # One seed after the other: an interrupted study has whole comparisons first.
    for seed in study.seeds:
        for width, own in study.widths.items():
            for name, row in study.rows.items():
                steps, taught = round(own.steps * row.steps_factor), row.distillation
                jobs[name, width, seed] = make_job(
                    replace(
                        params,
                        seed=seed,
                        students={width: replace(own, steps=steps)},
                        distillation=taught or params.distillation,
                        # Only the end is looked at.
                        training=replace(params.training, validate_steps=steps),
                    ),
                    "student" if taught else "control",
                    width,
                    name=f"{name}-{width}-{seed}",
                    plan=plan,
                    data=data,
                    teacher=teacher if taught else None,
                    soft_labels=soft_labels if taught and taught.needs_soft_labels else None,
                )
    return jobs


def _settings(row: Row) -> dict[str, Any] | None:
    """What ``ablation.json`` says of a row."""
    if row.distillation is None:
        return None
    longer = {} if row.steps_factor == 1 else {STEPS_FACTOR: row.steps_factor}
    return asdict(row.distillation) | longer


def _row(run: Run) -> dict[str, Any]:
    outcome: Outcome = run.outcome
    return {
        "row": run.row,
        "width": run.width,
        "seed": run.seed,
        "dice": outcome.val_dice,
        **{f"dice_{name}": value for name, value in outcome.structures.items()},
        "seconds_per_step": outcome.seconds_per_step,
        **{name: getattr(outcome, name) for name in _SHARES},
        "seconds": outcome.seconds,
    }


if __name__ == "__main__":
    run_stage(main)
