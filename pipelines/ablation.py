"""Study ``ablation``: what each part of distillation adds, on the validation split alone."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.params import AblationKnobs, Params, Row, read_params, read_studies
from pipelines.stage import run_stage
from pipelines.train import make_job
from segdistill.evaluation import plots
from segdistill.evaluation.score import write_table
from segdistill.files import write_json
from segdistill.studies.ablation import Outcomes, Run, steps_in_time, summarise, tuned
from segdistill.studies.rows import START
from segdistill.studies.runs import run_all
from segdistill.training.index import any_rendered
from segdistill.training.job import Job

_SHARES = ("data_share", "teacher_share", "student_share")


def main() -> None:
    """Train what isn't there yet; write table, summary and picture after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the teacher's model")
    parser.add_argument("--soft-labels", type=Path, required=True, help="folder of its soft labels")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared cases")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--study", type=Path, default=Path("studies/params.yaml"))
    parser.add_argument("--workers", type=int, default=0, help="trainings at a time; 0: one per core")
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    study, left_out = without_stored(read_studies(arguments.study).ablation, arguments.data)
    for row, why in left_out.items():
        print(f"ablation: {row} is left out: {why}", file=sys.stderr, flush=True)
    places = {name: getattr(arguments, name) for name in ("teacher", "soft_labels", "plan", "data")}

    def changed(outcomes: Outcomes) -> None:
        unfinished = count_runs(study) - len(outcomes)
        summary = summarise(outcomes, list(study.rows), unfinished, params.evaluation.confidence)
        summary |= {
            "task": params.task,
            "settings": {name: _settings(row) for name, row in study.rows.items()},
            "left_out": left_out,
        }
        _write(arguments.out, outcomes, summary)

    outcomes = run_all(
        lambda outcomes: study_jobs(params, study, outcomes, **places),
        arguments.runs / params.task / "ablation",
        workers=arguments.workers,
        progress=lambda line: print(f"ablation: {line}", file=sys.stderr, flush=True),
        changed=changed,
    )
    print(f"ablation: {len(outcomes)} runs, {arguments.out / 'ablation.json'}")


def without_stored(study: AblationKnobs, data: Path) -> tuple[AblationKnobs, dict[str, str]]:
    """The study without the rows that can't be, and why, by row."""
    if not any_rendered(data):
        return study, {}
    stored = [
        name for name, row in study.rows.items() if row.taught and row.distillation.needs_soft_labels
    ]
    why = "scans that are rendered while training have no stored soft labels"
    rows = {name: row for name, row in study.rows.items() if name not in stored}
    return replace(study, rows=rows), dict.fromkeys(stored, why)


def count_runs(study: AblationKnobs) -> int:
    """The runs of the whole study."""
    again = len(study.seeds) - 1
    each = (
        len(row.learning_rates) + again if row.to_plateau else len(study.seeds) * (1 + row.takes_longer)
        for row in study.rows.values()
    )
    return len(study.widths) * sum(each)


def study_jobs(
    params: Params,
    study: AblationKnobs,
    outcomes: Outcomes,
    *,
    teacher: Path,
    soft_labels: Path,
    plan: Path,
    data: Path,
) -> dict[Run, Job]:
    """The trainings of the study that are known by now, most urgent first.

    Rows to their plateau come first. A row in the steps of 'start' waits for that, a row in its time for
    the pace that it had in those steps, and other seeds for the learning rate that the first one finds.

    Args:
        params: the task's knobs.
        study: the study's.
        outcomes: of the runs that are finished.
        teacher: folder of the teacher's model.
        soft_labels: folder of the teacher's soft labels, which the rows that need them are given.
        plan: plan.json.
        data: folder of prepared cases.
    """
    jobs: dict[Run, Job] = {}
    flat = replace(
        params.training,
        decay_share=study.decay_share,
        patience=study.patience,
        flat=study.flat,
        validate_steps=study.validate_steps,
    )

    def add(run: Run, row: Row, steps: int) -> None:
        own, taught = study.widths[run.width], row.teaching
        # In a given number of steps, only the end is looked at.
        training = flat if row.to_plateau else replace(flat, patience=0, validate_steps=steps)
        student = replace(own, steps=steps, learning_rate=own.learning_rate * run.rate)
        jobs[run] = make_job(
            replace(
                params,
                seed=run.seed,
                students={run.width: student},
                distillation=row.distillation,
                training=training,
            ),
            "student" if taught else "control",
            run.width,
            name=f"{run.row}-{run.width}-{run.seed}-{run.budget}-{run.rate:g}",
            plan=plan,
            data=data,
            teacher=teacher if taught else None,
            soft_labels=soft_labels if taught and taught.needs_soft_labels else None,
        )

    def rate_of(name: str, width: str) -> float | None:
        return tuned(outcomes, name, width, study.seeds[0], study.rows[name].learning_rates)

    # One seed after the other: an interrupted study has whole comparisons first.
    for seed in study.seeds:
        for width, own in study.widths.items():
            for name, row in study.rows.items():
                if row.to_plateau:
                    best = rate_of(name, width)
                    found = [] if best is None else [best]
                    for rate in row.learning_rates if seed == study.seeds[0] else found:
                        add(
                            Run(name, width, seed, "plateau", rate),
                            row,
                            round(own.steps * row.steps_factor),
                        )
            start_rate = rate_of(START, width)
            start = start_rate and outcomes.get(Run(START, width, seed, "plateau", start_rate))
            if not start:
                continue
            for name, row in study.rows.items():
                rate = rate_of(row.rate_of, width)
                if row.to_plateau or rate is None:
                    continue
                run = Run(name, width, seed, "steps", rate)
                add(run, row, start.steps)
                if row.takes_longer and run in outcomes:
                    steps = steps_in_time(start, outcomes[run])
                    add(Run(name, width, seed, "time", rate), row, steps)
    return jobs


def _settings(row: Row) -> dict[str, Any]:
    """What ``ablation.json`` says of a row."""
    body = asdict(row)
    return body if row.taught else body | {"distillation": None}


def _write(out: Path, outcomes: Outcomes, summary: Mapping[str, Any]) -> None:
    """Table, picture and summary of what is there so far."""
    table = pd.DataFrame(
        [
            {
                **asdict(run),
                "learning_rate": outcome.learning_rate,
                "steps": outcome.steps,
                "dice": outcome.val_dice,
                **{f"dice_{name}": value for name, value in outcome.structures.items()},
                "seconds_per_step": outcome.seconds_per_step,
                **{name: getattr(outcome, name) for name in _SHARES},
                "seconds": outcome.seconds,
            }
            for run, outcome in outcomes.items()
        ]
    )
    decimals = {name: 5 for name in map(str, table) if name.startswith("dice")}
    write_table(
        out / "ablation.csv",
        table,
        {**decimals, "seconds_per_step": 4, "seconds": 1} | dict.fromkeys(_SHARES, 4),
    )
    plots.save(plots.ablation(summary), out / "ablation.png")
    write_json(out / "ablation.json", summary)


if __name__ == "__main__":
    run_stage(main)
