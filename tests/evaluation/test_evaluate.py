"""A small family on a small cohort, from bundles to the report."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from segdistill.evaluation.evaluate import Settings, evaluate
from segdistill.evaluation.members import read_members, read_test_set
from segdistill.evaluation.report import places, write_report
from segdistill.evaluation.score import DECIMALS, make_scorecard, write_table
from segdistill.evaluation.summary import family_table, training_pace
from segdistill.evaluation.timing import measure_memory, median_run
from segdistill.files import SegdistillError, write_json
from segdistill.sites.manifest import Case, Site
from segdistill.volume import write_label_map, write_volume
from tests.onnx_models import ball_scan, threshold_bundle

SETTINGS = Settings(
    nsd_tolerance_mm=2.0, timing_cases=2, confidence=0.95, margin=0.013, seed=7, workers=1
)
CURVE = """step,loss,seconds_per_step,samples_per_second,data_share,teacher_share
10,1.0,1.0,4.0,0.5,0.1
40,0.5,0.25,8.0,0.2,0.0
"""
STRUCTURES = {1: "structure_1", 2: "structure_2"}


def write_site(folder: Path, name: str, held_out: bool, spacing, radii) -> None:
    """Two nested balls a case, softened at their rims so that thresholds matter."""
    cases = []
    for number, radius in enumerate(radii):
        affine = np.diag([*spacing, 1.0])
        shape = tuple(round(72 / size) for size in spacing)
        outer, shell = ball_scan(shape, affine, radius_mm=radius, inside=100.0)
        _, core = ball_scan(shape, affine, radius_mm=radius / 2)
        noise = np.random.default_rng(number).normal(0, 18, shape)
        image = np.where(core, 200.0, outer.array) + np.where(shell, noise, 0.0)
        case = f"{name}-{number:03d}"
        (folder / name / "images").mkdir(parents=True, exist_ok=True)
        (folder / name / "labels").mkdir(parents=True, exist_ok=True)
        write_volume(folder / name / "images" / f"{case}.nii", image.astype(np.float32), affine)
        write_label_map(
            folder / name / "labels" / f"{case}.nii",
            shell.astype(np.uint8) + core.astype(np.uint8),
            outer,
        )
        cases.append(Case(case, case, f"images/{case}.nii", f"labels/{case}.nii", "test"))
    Site(
        site=name,
        task="balls",
        simulated=True,
        held_out=held_out,
        label_protocol="test",
        structures=STRUCTURES,
        cases=tuple(cases),
        note="Balls, made up for a test.",
    ).write(folder / name)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Bundles of a teacher, a student and its control that differ in their thresholds; two sites."""
    root = tmp_path_factory.mktemp("inputs")
    for name, role, width, thresholds in (
        ("teacher", "teacher", 1.0, (55.0, 150.0)),
        ("student-x4", "student", 0.25, (60.0, 135.0)),
        ("control-x4", "control", 0.25, (80.0, 125.0)),
    ):
        threshold_bundle(
            root / "bundles" / name,
            thresholds,
            provenance={
                "name": name,
                "role": role,
                "width": width,
                "parameters": round(16000 * width**2),
                "macs": round(10**6 * width),
            },
        )
    write_site(root / "sites", "near", False, (2.0, 2.0, 2.0), (22.0, 18.0, 20.0, 21.0, 19.0, 23.0))
    write_site(root / "sites", "far", True, (1.5, 1.5, 4.0), (20.0, 24.0))
    return root


@pytest.fixture(scope="module")
def reports(inputs):
    """The folder of the reports."""
    out = inputs / "reports"
    (out / "curves").mkdir(parents=True)
    (out / "curves" / "teacher.csv").write_text(CURVE)
    evaluate(inputs / "bundles", inputs / "sites", out, "balls", SETTINGS)
    write_report(out, out / "report.html")
    return out


@pytest.fixture(scope="module")
def table(reports):
    """family.json by name."""
    return {row["name"]: row for row in json.loads((reports / "family.json").read_text())}


def test_scorecard_has_a_row_per_model_case_and_structure(reports):
    """Three models, eight cases and two structures are forty-eight rows, none twice."""
    card = pd.read_csv(reports / "scorecard.csv")
    assert len(card) == 3 * 8 * 2
    assert not card.duplicated(["model", "case", "structure"]).any()
    assert set(card.groupby("site")["held_out"].first().items()) == {("far", True), ("near", False)}


def test_family_is_the_scorecard_recomputed(reports, table):
    """Each figure of family.json follows from scorecard and timings with pencil arithmetic."""
    card = pd.read_csv(reports / "scorecard.csv")
    timings = pd.read_csv(reports / "timings.csv")
    teacher = table["teacher"]
    for name, row in table.items():
        for held_out, suffix in ((False, ""), (True, "_held_out_site")):
            own = card[(card["model"] == name) & (card["held_out"] == held_out)]
            for metric in ("dice", "nsd", "hd95_mm"):
                per_case = [rows[metric].mean() for _, rows in own.groupby("case")]
                assert row[metric + suffix] == pytest.approx(np.mean(per_case), abs=1e-3)
        scans = timings[timings["model"] == name].groupby("case")["cpu_s"].sum()
        assert row["cpu_seconds"] == pytest.approx(scans.median(), abs=1e-4)
        assert row["retention"] == pytest.approx(row["dice"] / teacher["dice"], abs=1e-4)


def test_contract_of_family_json(table):
    """Every member has every agreed key, in family order, and a real process's memory."""
    assert list(table) == ["teacher", "student-x4", "control-x4"]
    agreed = "name role width parameters macs dice dice_held_out_site nsd hd95_mm retention cpu_seconds"
    for row in table.values():
        assert set(agreed.split()) | {"peak_rss_mb"} <= set(row)
        assert 30 < row["peak_rss_mb"] < 2000
        assert row["cpu_seconds"] > 0


def test_students_have_a_verdict_and_all_a_calibration(table):
    """The student's row says whether it lost too much and beat its control; every row how sure it is."""
    assert table["student-x4"]["non_inferior"] is False
    assert table["student-x4"]["retention_low"] <= table["student-x4"]["retention"]
    assert table["student-x4"]["worst_structure"] in STRUCTURES.values()
    assert table["student-x4"]["worst_site"] in {"near", "far"}
    assert table["teacher"]["non_inferior"] is table["control-x4"]["beats_control"] is None
    assert all(0 <= row["ece"] <= 1 for row in table.values())


def test_better_thresholds_score_better(table):
    """The figures rank the models as their thresholds were made: teacher, student, control."""
    assert table["teacher"]["dice"] > table["student-x4"]["dice"] > table["control-x4"]["dice"]
    assert table["student-x4"]["parameter_reduction"] == pytest.approx(0.9375)


def test_one_disturbed_run_does_not_count():
    """Of the turns on a case, one as a whole counts: that of median CPU time, not of wall time."""
    runs = [
        {"read": (9.0, 1.0), "network": (9.0, 2.0)},
        {"read": (1.0, 8.0), "network": (1.0, 1.0)},
        {"read": (1.0, 2.0), "network": (1.0, 2.0)},
    ]
    assert median_run(runs) is runs[2]


def test_timings_cover_every_step_of_every_model(reports):
    """Each model has the same steps on the same cases, one from each site, reading to writing."""
    timings = pd.read_csv(reports / "timings.csv")
    steps = ["read", "orient_crop", "normalise", "resample", "network", "restore", "write"]
    for _, rows in timings.groupby("model"):
        assert list(rows["step"]) == steps * 2
        assert set(rows["site"]) == {"near", "far"}


def test_memory_is_the_fresh_process_own(inputs):
    """A process that measures with a lot of memory in use measures no more than one with little."""
    ballast = np.ones(80_000_000)  # 640 MB
    test_set = read_test_set(inputs / "sites")
    memory = measure_memory(read_members(inputs / "bundles")[:1], test_set.cases[:1])
    assert 30 < memory["peak_rss_mb"].iloc[0] < ballast.nbytes / 1e6 < 700


def test_metrics_and_comparisons_say_the_same(reports, table):
    """What 'dvc metrics show' prints is family.json with the paired differences beside it."""
    metrics = json.loads((reports / "metrics.json").read_text())
    comparisons = json.loads((reports / "comparisons.json").read_text())
    pair = next(c for c in comparisons if c["against"] == "control-x4" and c["sites"] == "seen")
    for name, row in table.items():
        own = {key: value for key, value in metrics[name].items() if not key.startswith("vs_")}
        assert {"dice", "retention", "cpu_seconds"} < set(own)
        assert own == {key: row[key] for key in own}
    student = metrics["student-x4"]
    assert student["vs_control"] == pair["difference"]
    assert pair["difference"] == pytest.approx(
        table["student-x4"]["dice"] - table["control-x4"]["dice"], abs=1e-4
    )
    assert student["vs_control_low"] <= student["vs_control"] <= student["vs_control_high"]


def test_report_shows_the_figures_of_family_json(reports, table):
    """Every headline figure stands in the page as family.json has it."""
    page = (reports / "report.html").read_text()
    for row in table.values():
        line = re.search(rf"<td>{row['name']}</td><td>1.*?</tr>", page, re.S).group()
        for shown in (
            places(row["dice"], 4),
            places(row["dice_held_out_site"], 4),
            places(row["nsd"], 4),
            places(row["hd95_mm"], 2),
            places(row["cpu_seconds"], 2),
        ):
            assert f">{shown}<" in line


def test_report_stands_alone_and_says_what_it_is(reports):
    """One file under 2 MB with its pictures inside, no address to fetch, and the plain statements."""
    page = (reports / "report.html").read_text()
    assert len(page) < 2_000_000
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page).replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 10
    assert "simulated" in page
    assert "Balls, made up for a test." in page
    assert "within\n2 mm" in page
    assert "not a medical device" in page


def test_report_shows_the_three_worst_cases(reports):
    """Worst, second and third worst are the shown student's lowest test cases of any site, in order."""
    facts = json.loads((reports / "evaluation.json").read_text())
    card = pd.read_csv(reports / "scorecard.csv")
    dice = card[card["model"] == "student-x4"].groupby("case")["dice"].mean().sort_values()
    picks = {pick["kind"]: pick["case"] for pick in facts["picks"]}
    assert list(picks) == ["typical", "worst", "second_worst", "third_worst"]
    assert list(picks.values())[1:] == list(dice.index[:3])
    page = (reports / "report.html").read_text()
    assert all(
        f"{kind} case, {picks[kind.lower().replace(' ', '_')]}" in page
        for kind in ("Worst", "Second worst", "Third worst")
    )


def test_report_says_what_training_costs(reports):
    """Patches per second are all patches over all seconds, and shares are of time, not of rows."""
    (row,) = training_pace(reports / "curves", ["teacher", "student-x4"])
    seconds = {10: 10 * 1.0, 40: 30 * 0.25}
    assert row["steps"] == 40
    assert row["samples_per_second"] == pytest.approx((10 * 1.0 * 4 + 30 * 0.25 * 8) / 17.5)
    assert row["data_share"] == pytest.approx((0.5 * seconds[10] + 0.2 * seconds[40]) / 17.5)
    assert sum(row[f"{part}_share"] for part in ("data", "teacher", "student")) == pytest.approx(1)
    assert "What training costs" in (reports / "report.html").read_text()


def test_report_shows_studies_that_are_there(reports, tmp_path):
    """The page has a section for the ablation and for sites left out, if and only if they were run."""
    titles = "What each part of distillation adds", "A site left out"
    page = (reports / "report.html").read_text()
    assert not any(title in page for title in titles)
    shutil.copytree(reports, tmp_path / "reports")
    difference = {"mean": 0.0123, "low": None, "high": None, "better": 1, "seeds": 1}
    line = {
        "row": "logit",
        "label": "logit, equal time",
        "steps": 500,
        "minutes": 4.2,
        "width": "x4",
        "mean": 0.7654,
        "sd": None,
        "against_control": difference,
        "against_control_plateau": None,
        "against_start": None,
        "seconds_per_step": 0.5,
        "teacher_share": 0.25,
    }
    study = {
        "cases": 4,
        "seeds": [1],
        "subjects": 4,
        "confidence": 0.95,
        "unfinished": 0,
        "left_out": {},
        "rule": "The best row.",
        "chosen": "logit",
        "rows": [line],
    }
    site = {
        "site": "near",
        "subjects": 3,
        "members": [
            {
                "name": "student-x4",
                "role": "student",
                "dice": 0.6543,
                "dice_full": 0.7,
                "hd95_mm": 3.0,
                "hd95_mm_full": 2.0,
                "comparisons": [
                    {"metric": metric, "difference": value, "low": None, "high": None}
                    for metric, value in (("dice", -0.0457), ("hd95_mm", 1.0))
                ],
            }
        ],
    }
    write_json(tmp_path / "reports" / "ablation.json", study)
    write_json(tmp_path / "reports" / "leave_one_site_out" / "near.json", site)
    write_report(tmp_path / "reports", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(title in page for title in titles)
    for shown in ("0.7654", "+1.23", "0.6543", "\N{MINUS SIGN}4.57", "+1.00"):
        assert f">{shown}<" in page


def test_plots_are_small_pictures_and_tables(reports):
    """Every picture opens and is under 150 KB, and the tables have a row per model and site."""
    pictures = sorted((reports / "plots").glob("**/*.png"))
    assert len(pictures) == 10
    for path in pictures:
        assert path.stat().st_size < 150_000
        assert min(Image.open(path).size) > 200
    assert len(pd.read_csv(reports / "plots" / "dice_by_site.csv")) == 3 * 2
    assert list(pd.read_csv(reports / "plots" / "family.csv")["model"]) == [
        "teacher",
        "student-x4",
        "control-x4",
    ]


def test_other_files_of_the_report_folder_stay(reports):
    """What other stages wrote beside the reports is left alone."""
    assert (reports / "curves" / "teacher.csv").read_text() == CURVE


def test_scorecard_is_the_same_on_every_run(inputs, reports, tmp_path):
    """Scoring the same bundles on the same cases again gives the same bytes."""
    card = make_scorecard(
        read_members(inputs / "bundles"), read_test_set(inputs / "sites"), 2.0, workers=1
    )
    write_table(tmp_path / "card.csv", card, DECIMALS)
    assert (tmp_path / "card.csv").read_bytes() == (reports / "scorecard.csv").read_bytes()


@pytest.mark.slow
def test_processes_give_the_scorecard_of_one(inputs, reports, tmp_path):
    """Shared out over two processes, the rows are the same, in the same order."""
    card = make_scorecard(
        read_members(inputs / "bundles"), read_test_set(inputs / "sites"), 2.0, workers=2
    )
    write_table(tmp_path / "card.csv", card, DECIMALS)
    assert (tmp_path / "card.csv").read_bytes() == (reports / "scorecard.csv").read_bytes()


def test_a_bundle_of_other_structures_is_refused(inputs, tmp_path):
    """A bundle that segments other structures than the sites are labelled with stops the evaluation."""
    threshold_bundle(
        tmp_path / "teacher", (50.0,), provenance={"name": "teacher", "role": "teacher", "width": 1.0}
    )
    with pytest.raises(SegdistillError, match="sites are labelled"):
        make_scorecard(read_members(tmp_path), read_test_set(inputs / "sites"), 2.0, workers=1)


def test_a_tampered_bundle_is_refused(inputs, tmp_path):
    """A network changed after sealing is never scored."""
    threshold_bundle(
        tmp_path / "teacher", (55.0, 150.0), provenance={"name": "teacher", "role": "teacher"}
    )
    with (tmp_path / "teacher" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(SegdistillError, match=r"model\.onnx"):
        make_scorecard(read_members(tmp_path), read_test_set(inputs / "sites"), 2.0, workers=1)


def test_a_label_map_on_another_grid_is_refused(inputs):
    """A reference that isn't on its scan's grid is named, never compared."""
    test_set = read_test_set(inputs / "sites")
    near = [case for case in test_set.cases if case.site == "near"]
    far = [case for case in test_set.cases if case.site == "far"]
    mixed = dataclasses.replace(test_set, cases=(dataclasses.replace(near[0], label=far[0].label),))
    with pytest.raises(SegdistillError, match="not on the grid"):
        make_scorecard(read_members(inputs / "bundles"), mixed, 2.0, workers=1)


def test_nothing_is_reported_for_a_member_without_scores(inputs, reports):
    """A scorecard that lacks a member makes no family table."""
    card = pd.read_csv(reports / "scorecard.csv")
    timings, memory = pd.read_csv(reports / "timings.csv"), pd.read_csv(reports / "memory.csv")
    with pytest.raises(SegdistillError, match="control-x4"):
        family_table(
            read_members(inputs / "bundles"),
            card[card["model"] != "control-x4"],
            timings,
            memory,
            dict.fromkeys(("teacher", "student-x4", "control-x4"), 0.1),
            {},
        )
