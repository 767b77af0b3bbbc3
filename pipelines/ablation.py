"""Study ``ablation``: what each part of distillation adds, on the validation split alone."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipelines.stage import run_stage
from pipelines.train import make_job
from segdistill.evaluation import plots
from segdistill.evaluation.score import write_table
from segdistill.files import write_json
from segdistill.studies.ablation import Run, summarise
from segdistill.studies.runs import Outcome, run_all
from segdistill.training.job import Job

#: Knob of a row: a row without a teacher beside it may take as long as one with.
STEPS_FACTOR = "steps_factor"
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
    params = yaml.safe_load(arguments.params.read_text())
    study = yaml.safe_load(arguments.study.read_text())["ablation"]
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
        arguments.runs / params["task"] / "ablation",
        workers=arguments.workers,
        progress=lambda line: print(f"ablation: {line}", file=sys.stderr, flush=True),
    )
    runs = [Run(*key, outcome) for key, outcome in zip(wanted, outcomes, strict=True)]
    summary = summarise(runs, list(study["rows"])) | {
        "task": params["task"],
        "steps": {width: own["steps"] for width, own in study["widths"].items()},
        "settings": {
            row: None if own is None else study["distillation"] | own
            for row, own in study["rows"].items()
        },
    }
    table = pd.DataFrame([_row(run) for run in runs])
    decimals = {name: 5 for name in table if str(name).startswith("dice")}
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
    params: Mapping[str, Any],
    study: Mapping[str, Any],
    *,
    teacher: Path,
    soft_labels: Path,
    plan: Path,
    data: Path,
) -> dict[tuple[str, str, int], Job]:
    """The trainings of the study by (row, width, seed).

    Args:
        params: of params.yaml.
        study: ``ablation`` of studies/params.yaml. A row of null has no teacher; any other one holds
            what it changes of the study's ``distillation``, and by :data:`STEPS_FACTOR` how many times
            as many steps it takes as the others.
        teacher: folder of the teacher's model.
        soft_labels: folder of the teacher's soft labels, which the rows that need them are given.
        plan: plan.json.
        data: folder of prepared cases.
    """
    jobs = {}
    # One seed after the other: an interrupted study has whole comparisons first.
    for seed in study["seeds"]:
        for width, own in study["widths"].items():
            for row, changes in study["rows"].items():
                changed = dict(changes or {})
                steps = round(own["steps"] * changed.pop(STEPS_FACTOR, 1))
                distillation = study["distillation"] | changed
                needed = distillation["teaching"] == "stored" and distillation["logit_weight"] > 0
                jobs[row, width, seed] = make_job(
                    {
                        **params,
                        "seed": seed,
                        "students": {width: own | {"steps": steps}},
                        "distillation": distillation,
                        # Only the end is looked at.
                        "training": params["training"] | {"validate_steps": steps},
                    },
                    "control" if changes is None else "student",
                    width,
                    name=f"{row}-{width}-{seed}",
                    plan=plan,
                    data=data,
                    teacher=None if changes is None else teacher,
                    soft_labels=soft_labels if changes is not None and needed else None,
                )
    return jobs


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
