"""The ablation study: its runs, its table, and the row that its rule chooses."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipelines import ablation as script
from pipelines.ablation import count_runs, study_jobs, without_stored
from pipelines.params import read_params, read_studies
from segdistill.files import SegdistillError
from segdistill.network.model import read_model, write_model
from segdistill.runtime.plan import Plan
from segdistill.studies.ablation import Budget, Run, best, choose, paired, summarise, tuned
from segdistill.studies.rows import CONTROL, FAIR, START
from segdistill.studies.runs import Outcome, run_all
from segdistill.training.distillation.soft_labels import write_soft_labels
from segdistill.training.job import Job
from segdistill.training.launch import run_here
from tests.knobs import write_params
from tests.training.toy import DISTILLATION, NETWORK, TRAINING, toy_job

ROOT = Path(__file__).resolve().parents[2]
STUDY = read_studies(ROOT / "studies" / "params.yaml").ablation


def _outcome(dice: float, *, steps: int = 100, seconds: float = 0.3) -> Outcome:
    subjects = {"a": dice - 0.1, "b": dice + 0.1}
    return Outcome(
        dice, {"bright": dice, "brighter": None}, subjects, 2, steps, 0.01, seconds, 0.1, 0.2, 0.7, 9.0
    )


def _runs(scores: dict[tuple[str, Budget], list[list[float]]]) -> dict[Run, Outcome]:
    """A run per row, width and seed from (widths, seeds) scores per row."""
    return {
        Run(row, width, seed, budget, 1.0): _outcome(value)
        for (row, budget), own in scores.items()
        for width, values in zip(("x4", "x8"), own, strict=False)
        for seed, value in enumerate(values)
    }


def _column(*seeds: float) -> Any:
    """(seeds, 1) Dice of one subject."""
    return np.array(seeds)[:, None]


def test_the_clearly_best_row_is_chosen() -> None:
    """A row that is ahead by more than a standard error wins, whatever it takes."""
    scores = {
        "control": _column(0.5, 0.51),
        "start": _column(0.6, 0.61),
        "logit": _column(0.7, 0.71),
    }
    assert choose(scores) == best(scores) == "logit"


def test_a_simpler_row_that_is_as_good_is_chosen() -> None:
    """Ahead by no more than one standard error of the difference, the other row isn't worth it."""
    scores = {
        "control": _column(0.5, 0.5, 0.5),
        "start": _column(0.70, 0.71, 0.72),
        "logit": _column(0.71, 0.70, 0.73),  # ahead by 0.0033, standard error 0.0067
    }
    assert best(scores) == "logit"
    assert choose(scores) == "start"


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=1, max_size=6).map(
        lambda rows: {f"row{n}": np.array(row).reshape(3, 2) for n, row in enumerate(rows)}
    )
)
def test_the_rule_holds_for_any_scores(scores: dict[str, Any]) -> None:
    """The choice is within one standard error of the best, and no simpler row is."""
    top = scores[best(scores)]

    def as_good(row: str) -> bool:
        behind = paired(top, scores[row], 0.5)
        assert behind.standard_error is not None
        return behind.mean <= behind.standard_error

    rows = list(scores)
    chosen = choose(scores)
    assert as_good(chosen)
    assert not any(as_good(row) for row in rows[: rows.index(chosen)])


def test_an_interval_of_seeds_alone_is_students() -> None:
    """With one subject it is the t interval of the seeds' differences, whatever the seeds do."""
    values, others = _column(0.71, 0.93, 0.52), _column(0.70, 0.90, 0.50)
    found = paired(values, others, 0.95)
    differences = (values - others)[:, 0]
    expected = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-5)
    assert (found.better, found.seeds, found.subjects) == (3, 3, 1)


def test_an_interval_covers_seeds_and_subjects() -> None:
    """Of crossed effects of seeds and subjects it covers the true difference as often as it says."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        seeds, subjects = random.normal(0, 0.01, (3, 1)), random.normal(0, 0.01, (1, 8))
        found = paired(0.02 + seeds + subjects + random.normal(0, 0.01, (3, 8)), np.zeros((3, 8)), 0.9)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.02 <= found.high
    assert covered >= 0.87 * 400


def test_the_summary_compares_at_equal_steps_and_at_equal_time() -> None:
    """Means and differences follow from the runs with pencil arithmetic, and the choice is in time."""
    runs = _runs(
        {
            ("control", "steps"): [[0.5, 0.6], [0.4, 0.4]],
            ("control_plateau", "plateau"): [[0.9, 0.9], [0.9, 0.9]],
            ("start", "plateau"): [[0.7, 0.7], [0.5, 0.6]],
            ("logit", "steps"): [[0.75, 0.8], [0.6, 0.8]],
            ("logit", "time"): [[0.6, 0.7], [0.5, 0.5]],
        }
    )
    order = ["control", "control_plateau", "start", "logit"]
    summary = summarise(runs, order, 0, 0.95)
    lines = {(line["row"], line["width"], line["budget"]): line for line in summary["rows"]}
    line = lines["logit", "x8", "steps"]
    assert line["mean"] == pytest.approx(0.7)
    assert line["against_control"]["mean"] == pytest.approx(0.3)
    assert line["against_control_plateau"]["mean"] == pytest.approx(-0.2)
    assert line["against_start"]["mean"] == pytest.approx(0.15)
    assert lines["logit", "x4", "time"]["against_start"]["mean"] == pytest.approx(-0.05)
    assert line["structures"] == {"bright": 0.7, "brighter": None}
    assert (line["steps"], line["minutes"], line["label"]) == (100, 0.5, "logit, equal steps")
    # In the time of start the term loses; the control that took longer isn't among those to choose from.
    assert summary["chosen"] == summary["best"] == "start"
    assert (summary["split"], summary["subjects"], summary["seeds"]) == ("val", 2, [0, 1])


def test_an_unfinished_study_chooses_nothing() -> None:
    """What is there is shown, compared over the seeds that both have; nothing is chosen."""
    runs = _runs({("start", "plateau"): [[0.6, 0.7]], ("logit", "steps"): [[0.8]]})
    summary = summarise(runs, ["control", "start", "logit"], 3, 0.95)
    assert [line["row"] for line in summary["rows"]] == ["start", "logit"]
    assert summary["rows"][1]["against_control"] is None
    assert summary["rows"][1]["against_start"]["seeds"] == 1
    assert summary["rows"][1]["against_start"]["mean"] == pytest.approx(0.2)
    assert (summary["unfinished"], summary["chosen"], summary["overall"]) == (3, None, [])


def test_of_several_learning_rates_the_best_on_validation_is_taken() -> None:
    """All must have been tried; the table then has that one's runs, and the list all of them."""
    runs = {
        Run("control_plateau", "x4", 1, "plateau", rate): _outcome(dice)
        for rate, dice in ((0.5, 0.6), (2.0, 0.7))
    }
    assert tuned(runs, "control_plateau", "x4", 1, (0.5, 1.0, 2.0)) is None
    runs[Run("control_plateau", "x4", 1, "plateau", 1.0)] = _outcome(0.65)
    assert tuned(runs, "control_plateau", "x4", 1, (0.5, 1.0, 2.0)) == 2.0
    runs[Run("control_plateau", "x4", 2, "plateau", 2.0)] = _outcome(0.5)
    summary = summarise(runs, ["control_plateau"], 1, 0.95)
    assert [line["scores"] for line in summary["rows"]] == [[0.7, 0.5]]
    assert sorted((entry["rate"], entry["dice"]) for entry in summary["rates"]) == [
        *((0.5, 0.6), (1.0, 0.65), (2.0, 0.7))
    ]


def test_the_studys_rows_are_what_they_are_called() -> None:
    """Controls have no teacher, start only inherits, and each other row adds what its name says."""
    assert {CONTROL, FAIR, START} <= set(STUDY.rows)
    for name, row in STUDY.rows.items():
        assert row.taught != name.startswith("control")
        assert row.to_plateau == (name in (FAIR, START))
        terms = ("logit", "region", "context")
        weights = {term: getattr(row.distillation, f"{term}_weight") > 0 for term in terms}
        assert weights == {term: term in name.split("_") for term in weights}
        assert row.distillation.inherit == ("alone" not in name)
        assert row.distillation.teaching == ("stored" if "stored" in name else "live")


def _teacher(folder: Path) -> dict[str, Path]:
    """A toy teacher with its soft labels."""
    job = toy_job(folder, steps=10)
    plan = Plan.read(Path(job.plan))
    network, _ = run_here(job, folder / "runs")
    write_model(
        folder / "teacher", network, plan, name="teacher", role="teacher", width=1.0, training={}
    )
    write_soft_labels(read_model(folder / "teacher", plan), plan, Path(job.data), folder / "soft_labels")
    return {
        "teacher": folder / "teacher",
        "soft_labels": folder / "soft_labels",
        "plan": Path(job.plan),
        "data": Path(job.data),
    }


def test_a_study_learns_what_to_train_as_it_goes(tmp_path: Path) -> None:
    """Rows wait for the steps of start, for a pace, for a learning rate; in the end all are there."""
    (tmp_path / "plan.json").write_text("{}")
    params = replace(read_params(ROOT / "params.yaml"), network=NETWORK, training=TRAINING)
    places = {name: tmp_path / name for name in ("teacher", "soft_labels", "data")}
    outcomes: dict[Run, Outcome] = {}
    rounds = []
    while True:
        jobs = study_jobs(params, STUDY, outcomes, plan=tmp_path / "plan.json", **places)
        new = {run: job for run, job in jobs.items() if run not in outcomes}
        if not new:
            break
        rounds.append({run.budget for run in new})
        # A step with a term takes twice as long; the middle learning rate is the best.
        outcomes |= {
            run: _outcome(
                0.8 - abs(run.rate - 1) / 10,
                steps=job.steps if run.budget != "plateau" else 1000 + run.seed,
                seconds=0.2 if STUDY.rows[run.row].takes_longer else 0.1,
            )
            for run, job in new.items()
        }
    assert rounds[0] == {"plateau"}
    assert rounds[-1] == {"time"}
    assert len(outcomes) == count_runs(STUDY)
    names = [job.name for job in jobs.values()]
    assert len(set(names)) == len(names)
    for run, job in jobs.items():
        row, own = STUDY.rows[run.row], STUDY.widths[run.width]
        assert (job.teacher is None) == (not row.taught)
        assert (job.soft_labels is not None) == (run.row == "logit_stored")
        assert (job.seed, job.learning_rate) == (run.seed, own.learning_rate * run.rate)
        assert job.training.patience == (STUDY.patience if run.budget == "plateau" else 0)
        if run.budget != "plateau":
            assert run.rate == 1.0
            assert job.steps == (
                1000 + run.seed if run.budget == "steps" else round((1000 + run.seed) / 2)
            )


def test_rows_that_cannot_be_are_left_out_with_a_word(tmp_path: Path) -> None:
    """Scans that are rendered while training have no stored soft labels; all other rows stay."""
    (tmp_path / "index.json").write_text(json.dumps([{"case": "a", "rendered": True}]))
    study, left_out = without_stored(STUDY, tmp_path)
    assert set(left_out) == set(STUDY.rows) - set(study.rows) == {"logit_stored"}
    assert count_runs(study) < count_runs(STUDY)
    (tmp_path / "index.json").write_text(json.dumps([{"case": "a"}]))
    assert without_stored(STUDY, tmp_path) == (STUDY, {})


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    """What was finished is taken as it is, what is missing is trained, and what follows from it, too."""
    kept = tmp_path / "kept"
    jobs = {seed: toy_job(tmp_path, name=f"toy-{seed}", seed=seed, steps=4) for seed in (1, 2, 3)}
    run_all(lambda _: {1: jobs[1]}, kept, workers=1)
    (first,) = kept.glob("*.json")
    # Not what any training would give: it shows whether the file was taken.
    first.write_text(json.dumps(json.loads(first.read_text()) | {"val_dice": 0.125}))
    said: list[str] = []
    told: list[list[int]] = []

    def plan(outcomes: Mapping[int, Outcome]) -> dict[int, Job]:
        return jobs if 2 in outcomes else {1: jobs[1], 2: jobs[2]}

    outcomes = run_all(
        plan, kept, workers=1, progress=said.append, changed=lambda there: told.append(sorted(there))
    )
    assert outcomes[1].val_dice == 0.125
    assert outcomes[2].val_dice != 0.125
    assert outcomes[2].steps == 4
    assert set(outcomes[2].subjects) == {"toy-6", "toy-7"}
    assert [line.split(":")[1].split()[0] for line in said] == ["toy-2", "toy-3"]
    assert told == [[1], [1, 2], [1, 2, 3]]


def test_a_failed_training_leaves_the_results_of_the_others(tmp_path: Path) -> None:
    """The error is the training's own, and what was finished before it stays."""
    good = toy_job(tmp_path, steps=2)
    bad = toy_job(tmp_path, name="bad", steps=2, plan=str(tmp_path / "plan.json"), learning_rate=1e30)
    with pytest.raises(SegdistillError, match="bad: the loss is no number"):
        run_all(lambda _: {"good": good, "bad": bad}, tmp_path / "kept", workers=1)
    assert [path.stem for path in (tmp_path / "kept").glob("*.json")] == [good.digest()]


@pytest.mark.slow
def test_the_study_from_params_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a toy teacher the script writes a row per run, a summary with a choice, and a picture.

    The index also names a test case whose files don't exist: nothing asks for them.
    """
    places = _teacher(tmp_path)
    index = json.loads((places["data"] / "index.json").read_text())
    index.append(index[0] | {"case": "toy-test", "split": "test"})
    (places["data"] / "index.json").write_text(json.dumps(index))
    student = {"width": 0.5, "steps": 8, "learning_rate": 0.01}
    study = {
        "seeds": [1, 2],
        "widths": {"x2": student},
        "decay_share": 0.5,
        "patience": 1,
        "flat": 1.0,
        "validate_steps": 1,
        "distillation": asdict(replace(DISTILLATION, logit_weight=0.0, inherit=True)),
        "rows": {
            "control": {"taught": False},
            "start": {"to_plateau": True},
            "logit": {"teaching": "stored", "logit_weight": 1.0},
            "region_context": {"region_weight": 0.1, "context_weight": 0.1},
        },
    }
    network = {name: value for name, value in asdict(NETWORK).items() if value != ()}
    training = asdict(TRAINING) | {"small_patch_size": [8, 8, 8]}
    write_params(tmp_path / "params.yaml", task="toy", seed=1, network=network, training=training)
    studies = {"ablation": study, "leave_one_site_out": {"sites": [], "students": []}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(studies, sort_keys=False))
    out = tmp_path / "reports"
    arguments = [
        *("--teacher", places["teacher"], "--soft-labels", places["soft_labels"]),
        *("--plan", places["plan"], "--data", places["data"], "--out", out),
        *("--runs", tmp_path / "kept", "--params", tmp_path / "params.yaml"),
        *("--study", tmp_path / "study.yaml", "--workers", "1"),
    ]
    monkeypatch.setattr(sys, "argv", ["ablation", *map(str, arguments)])
    script.main()
    table = pd.read_csv(out / "ablation.csv")
    assert len(table) == (1 + 1 + 2 + 2) * 1 * 2
    assert table[table["budget"] == "steps"]["steps"].tolist() == [4] * 6  # flat after the second step
    assert table[["dice", "dice_bright", "dice_brighter"]].map(lambda value: 0 <= value <= 1).all().all()
    shares = table[["data_share", "teacher_share", "student_share"]]
    assert shares.sum(axis=1).tolist() == pytest.approx([1] * 12, abs=2e-3)
    summary = json.loads((out / "ablation.json").read_text())
    assert summary["chosen"] in study["rows"]
    assert summary["cases"] == 2
    lines = [(line["row"], line["budget"]) for line in summary["rows"]]
    assert lines == [
        *(("control", "steps"), ("start", "plateau"), ("logit", "steps"), ("logit", "time")),
        *(("region_context", "steps"), ("region_context", "time")),
    ]
    assert summary["rows"][0]["mean"] == pytest.approx(
        table[table["row"] == "control"]["dice"].mean(), abs=1e-4
    )
    assert (out / "ablation.png").stat().st_size > 1000
