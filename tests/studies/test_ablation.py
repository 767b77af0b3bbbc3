"""The ablation study: its runs, its table, and the row that its rule chooses."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines import ablation as script
from pipelines.ablation import study_jobs
from pipelines.params import read_params, read_studies
from segdistill.files import SegdistillError
from segdistill.network.model import read_model, write_model
from segdistill.runtime.plan import Plan
from segdistill.studies import ablation
from segdistill.studies.ablation import Run, best, choose, paired, summarise
from segdistill.studies.runs import Outcome, run_all
from segdistill.training.distillation.soft_labels import write_soft_labels
from segdistill.training.launch import run_here
from tests.knobs import write_params
from tests.training.toy import DISTILLATION, NETWORK, TRAINING, toy_job

ROOT = Path(__file__).resolve().parents[2]
STUDY = read_studies(ROOT / "studies" / "params.yaml").ablation


def _outcome(dice: float) -> Outcome:
    return Outcome(dice, {"bright": dice, "brighter": None}, 2, 0.3, 0.1, 0.2, 0.7, 9.0)


def _runs(scores: dict[str, list[list[float]]]) -> list[Run]:
    """A run per row, width and seed from (widths, seeds) scores per row."""
    return [
        Run(row, width, seed, _outcome(value))
        for row, own in scores.items()
        for width, values in zip(("x4", "x8"), own, strict=False)
        for seed, value in enumerate(values)
    ]


def test_the_clearly_best_row_is_chosen() -> None:
    """A row that is ahead by more than a standard error wins, whatever it costs."""
    scores = {
        "control": np.array([0.5, 0.51]),
        "start": np.array([0.6, 0.61]),
        "logit": np.array([0.7, 0.71]),
    }
    assert choose(scores) == best(scores) == "logit"


def test_a_cheaper_row_that_is_as_good_is_chosen() -> None:
    """Ahead by no more than one standard error of the difference, the dearer row isn't worth it."""
    scores = {
        "control": np.array([0.5, 0.5, 0.5]),
        "start": np.array([0.70, 0.71, 0.72]),
        "logit": np.array([0.71, 0.70, 0.73]),  # ahead by 0.0033, standard error 0.0067
    }
    assert best(scores) == "logit"
    assert choose(scores) == "start"


def test_differences_are_paired_by_seed() -> None:
    """A difference that every seed shows is sure however much the seeds differ among themselves."""
    scores = {"start": np.array([0.5, 0.6, 0.7]), "logit": np.array([0.502, 0.6021, 0.702])}
    assert choose(scores) == "logit"
    assert paired(scores["logit"], scores["start"]).better == 3


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6).map(
        lambda rows: {f"row{n}": np.array(row) for n, row in enumerate(rows)}
    )
)
def test_the_rule_holds_for_any_scores(scores: dict[str, Any]) -> None:
    """The choice is within one standard error of the best, and no cheaper row is."""
    top = scores[best(scores)]

    def as_good(row: str) -> bool:
        behind = paired(top, scores[row])
        assert behind.standard_error is not None
        return behind.mean <= behind.standard_error

    rows = list(scores)
    chosen = choose(scores)
    assert as_good(chosen)
    assert not any(as_good(row) for row in rows[: rows.index(chosen)])


def test_the_summary_compares_with_control_and_start() -> None:
    """Means, spreads and differences of the summary follow from the runs with pencil arithmetic."""
    runs = _runs(
        {
            "control": [[0.5, 0.6], [0.4, 0.4]],
            "start": [[0.7, 0.7], [0.5, 0.6]],
            "logit": [[0.75, 0.7], [0.5, 0.8]],
        }
    )
    summary = summarise(runs, ["control", "start", "logit"])
    line = next(line for line in summary["rows"] if (line["row"], line["width"]) == ("logit", "x8"))
    assert line["mean"] == pytest.approx(0.65)
    assert line["sd"] == pytest.approx(np.std([0.5, 0.8], ddof=1), abs=1e-5)
    assert line["against_control"]["mean"] == pytest.approx(0.25)
    assert line["against_start"] == {
        "mean": 0.1,
        "standard_error": 0.1,
        "better": 1,
        "seeds": 2,
    }
    assert line["structures"] == {"bright": 0.65, "brighter": None}
    overall = {entry["row"]: entry["mean"] for entry in summary["overall"]}
    assert overall["logit"] == pytest.approx((0.75 + 0.7 + 0.5 + 0.8) / 4, abs=1e-5)
    assert summary["best"] == "logit"
    assert summary["split"] == "val"


@pytest.mark.parametrize("change", [lambda runs: runs[:-1], lambda runs: [*runs, runs[0]]])
def test_an_incomplete_study_has_no_summary(change: Any) -> None:
    """A run too few or too many is said, never averaged over."""
    runs = _runs({"control": [[0.5, 0.6]], "start": [[0.6, 0.7]]})
    with pytest.raises(SegdistillError, match="ablation"):
        summarise(change(runs), ["control", "start"])


def test_the_studys_rows_are_what_they_are_called() -> None:
    """Control has no teacher, start only inherits, and each other row adds what its name says."""
    assert list(STUDY.rows)[:2] == [ablation.CONTROL, ablation.START]
    assert STUDY.rows[ablation.CONTROL].distillation is None
    for name, row in STUDY.rows.items():
        taught = row.distillation or STUDY.distillation
        terms = ("logit", "region", "context")
        weights = {term: getattr(taught, f"{term}_weight") > 0 for term in terms}
        assert weights == {term: term in name.split("_") for term in weights}
    assert STUDY.distillation.inherit


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


def test_a_study_trains_every_row_the_same_way_but_for_its_own_changes(tmp_path: Path) -> None:
    """Rows of a width and seed differ in role and distillation alone, and the split is never test."""
    (tmp_path / "plan.json").write_text("{}")
    params = replace(read_params(ROOT / "params.yaml"), network=NETWORK, training=TRAINING)
    jobs = study_jobs(
        params,
        STUDY,
        teacher=tmp_path / "teacher",
        soft_labels=tmp_path / "soft",
        plan=tmp_path / "plan.json",
        data=tmp_path / "data",
    )
    assert len(jobs) == len(STUDY.rows) * len(STUDY.widths) * len(STUDY.seeds)
    for (row, width, seed), job in jobs.items():
        control = jobs["control", width, seed]
        same = ["width", "learning_rate", "seed", "plan", "data", "network"]
        same += ["steps", "training"] if row != "start_longer" else []
        assert [getattr(job, name) for name in same] == [getattr(control, name) for name in same]
        assert (job.teacher is None) == (row == "control")
        assert job.seed == seed
        assert job.steps == round(control.steps * (1.75 if row == "start_longer" else 1))
        assert job.training.validate_steps == job.steps
        needs = row != "control" and job.distillation.teaching == "stored" and "logit" in row
        assert (job.soft_labels is not None) == needs


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    """What was finished is taken as it is, and only what is missing is trained."""
    jobs = [toy_job(tmp_path, name=f"toy-{seed}", seed=seed, steps=4) for seed in (1, 2)]
    kept = tmp_path / "kept"
    run_all(jobs[:1], kept, workers=1)
    (first,) = kept.glob("*.json")
    # Not what any training would give: it shows whether the file was taken.
    first.write_text(json.dumps(json.loads(first.read_text()) | {"val_dice": 0.125}))
    said: list[str] = []
    outcomes = run_all(jobs, kept, workers=1, progress=said.append)
    assert outcomes[0].val_dice == 0.125
    assert outcomes[1].val_dice != 0.125
    assert said[0].startswith("1 of 2 are there")
    assert said[1].startswith("2 of 2: toy-2")
    assert len(list(kept.glob("*.json"))) == 2


def test_a_failed_training_leaves_the_results_of_the_others(tmp_path: Path) -> None:
    """The error is the training's own, and what was finished before it stays."""
    good = toy_job(tmp_path, steps=2)
    bad = toy_job(tmp_path, name="bad", steps=2, plan=str(tmp_path / "plan.json"), learning_rate=1e30)
    with pytest.raises(SegdistillError, match="bad: the loss is no number"):
        run_all([good, bad], tmp_path / "kept", workers=1)
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
    student = {"width": 0.5, "steps": 4, "learning_rate": 0.01}
    study = {
        "seeds": [1, 2],
        "widths": {"x2": student},
        "distillation": asdict(replace(DISTILLATION, logit_weight=0.0, inherit=True)),
        "rows": {
            "control": None,
            "start": {},
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
    assert len(table) == 4 * 1 * 2
    assert table[["dice", "dice_bright", "dice_brighter"]].map(lambda value: 0 <= value <= 1).all().all()
    shares = table[["data_share", "teacher_share", "student_share"]]
    assert shares.sum(axis=1).tolist() == pytest.approx([1] * 8, abs=2e-3)
    summary = json.loads((out / "ablation.json").read_text())
    assert summary["chosen"] in study["rows"]
    assert summary["cases"] == 2
    assert [line["row"] for line in summary["rows"]] == list(study["rows"])
    assert summary["rows"][0]["mean"] == pytest.approx(
        table[table["row"] == "control"]["dice"].mean(), abs=1e-4
    )
    assert (out / "ablation.png").stat().st_size > 1000
