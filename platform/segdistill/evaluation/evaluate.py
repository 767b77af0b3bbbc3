"""The whole evaluation of a family: from bundles and sites to the files under ``reports/TASK``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from segdistill.evaluation import calibration, plots, timing
from segdistill.evaluation.compare import Comparison, compare_family
from segdistill.evaluation.facts import facts
from segdistill.evaluation.knobs import EvaluationKnobs
from segdistill.evaluation.machine import describe_machine
from segdistill.evaluation.members import (
    Member,
    TestSet,
    read_members,
    read_test_set,
    spread_over_sites,
)
from segdistill.evaluation.overlays import (
    Pick,
    colours_of_overlay,
    overlay,
    pick_cases,
    shown_members,
)
from segdistill.evaluation.score import DECIMALS, make_scorecard, read_scorecard, write_table
from segdistill.evaluation.summary import (
    case_scores,
    family_table,
    scan_seconds,
    site_scores,
    step_seconds,
)
from segdistill.evaluation.verdict import judge
from segdistill.family import Figures, write_family
from segdistill.files import atomic_folder, write_json
from segdistill.runtime.bundle import Bundle, digest
from segdistill.runtime.segment import Segmentator
from segdistill.volume import read_label_map, read_volume

Progress = Callable[[str], None]
#: What of a row of family.json 'dvc metrics' shows: it puts all models side by side in one line.
_IN_METRICS = (
    "parameters",
    "macs",
    "dice",
    "dice_held_out_site",
    "nsd",
    "hd95_mm",
    "retention",
    "ece",
    "cpu_seconds",
    "peak_rss_mb",
)


@dataclass(frozen=True)
class Settings(EvaluationKnobs):
    """The knobs of the evaluation, and how it is run.

    Attributes:
        seed: of the resampling.
        workers: processes that score; 0: one per usable core.
    """

    seed: int
    workers: int = 0


def evaluate(
    bundles: Path,
    sites: Path,
    out: Path,
    task: str,
    settings: Settings,
    progress: Progress = lambda _: None,
) -> list[Figures]:
    """Evaluate every bundle on every test case and write all reports.

    Timing comes first, while nothing else runs; then the cases are shared out over processes.

    Args:
        bundles: folder with one bundle per member.
        sites: folder with one site per folder.
        out: where the reports go; other files there stay.
        task: the task's name.
        settings: the knobs.
        progress: told one line per step.

    Returns:
        The rows of family.json.

    Raises:
        SegdistillError: a bundle, site or case that can't be used; the message names it.
    """
    family = read_members(bundles)
    test_set = read_test_set(sites)
    timed = spread_over_sites(test_set.cases, settings.timing_cases)
    timings = timing.time_family(family, timed, progress=progress)
    memory = timing.measure_memory(family, timed, progress=progress)
    curves = calibration.calibration_curves(family, timed, progress=progress)
    card = make_scorecard(
        family, test_set, settings.nsd_tolerance_mm, workers=settings.workers, progress=progress
    )
    write_table(out / "timings.csv", timings, timing.DECIMALS)
    write_table(out / "memory.csv", memory, timing.MEMORY_DECIMALS)
    write_table(out / "calibration.csv", curves, calibration.DECIMALS)
    write_table(out / "scorecard.csv", card, DECIMALS)
    # From here on the files as written are read: what anyone recomputes from them is what is reported.
    card = read_scorecard(out / "scorecard.csv")
    timings = pd.read_csv(out / "timings.csv")
    memory = pd.read_csv(out / "memory.csv")
    curves = pd.read_csv(out / "calibration.csv")
    comparisons = compare_family(family, card, settings.confidence, settings.seed)
    table = family_table(
        family,
        card,
        timings,
        memory,
        calibration.expected_calibration_error(curves),
        judge(family, card, comparisons, settings.margin),
    )
    write_family(out / "family.json", table)
    write_json(out / "comparisons.json", [asdict(comparison) for comparison in comparisons])
    write_json(out / "metrics.json", metrics(table, comparisons))
    picks = pick_cases(card, _subject_of_pictures(family))
    with atomic_folder(out / "plots") as folder:
        _write_plots(folder, family, test_set, card, timings, curves, table, comparisons, picks)
    write_json(
        out / "evaluation.json",
        facts(
            task,
            test_set,
            shown=[member.name for member in shown_members(family)],
            picks=picks,
            digests={member.name: digest(member.folder) for member in family},
            margin=settings.margin,
            nsd_tolerance_mm=settings.nsd_tolerance_mm,
            confidence=settings.confidence,
            machine=describe_machine(),
        ),
    )
    return table


def metrics(table: Sequence[Figures], comparisons: Sequence[Comparison]) -> dict[str, dict[str, Any]]:
    """The family's figures by member for ``dvc metrics``, which reads dictionaries of numbers.

    A student's row also has its paired difference to its control and to the teacher on seen sites:
    ``vs_control``, ``vs_control_low``, ``vs_control_high`` and the same for ``vs_teacher``.
    """
    roles = {row.name: row.role for row in table}
    figures: dict[str, dict[str, Any]] = {}
    for row in table:
        own = {key: getattr(row, key) for key in _IN_METRICS}
        own["retention_low"] = row.verdict.retention_low if row.verdict else None
        figures[row.name] = {key: value for key, value in own.items() if value is not None}
    for comparison in comparisons:
        if comparison.sites != "seen" or comparison.metric != "dice":
            continue
        key = f"vs_{roles[comparison.against]}"
        found = {
            key: comparison.difference,
            f"{key}_low": comparison.low,
            f"{key}_high": comparison.high,
        }
        figures[comparison.name] |= {k: value for k, value in found.items() if value is not None}
    return figures


def _subject_of_pictures(family: Sequence[Member]) -> Member:
    """Whose Dice chooses the cases of the overlays: the shown student, else the teacher."""
    shown = shown_members(family)
    return next((member for member in shown if member.role == "student"), shown[0])


def _write_plots(
    folder: Path,
    family: Sequence[Member],
    test_set: TestSet,
    card: pd.DataFrame,
    timings: pd.DataFrame,
    curves: pd.DataFrame,
    table: Sequence[Figures],
    comparisons: Sequence[Comparison],
    picks: Mapping[str, Pick],
) -> None:
    cases, by_site, steps = case_scores(card), site_scores(card), step_seconds(timings)
    plots.save(plots.pareto(table, family), folder / "pareto.png")
    plots.save(plots.cpu_by_step(steps, table, family), folder / "cpu_by_step.png")
    plots.save(plots.dice_by_site(by_site, cases, family, test_set.sites), folder / "dice_by_site.png")
    plots.save(plots.differences(comparisons), folder / "differences.png")
    shown = shown_members(family)
    structures = list(test_set.structures.values())
    plots.save(plots.volume_agreement(card, structures, shown), folder / "volume_agreement.png")
    plots.save(plots.reliability(curves, shown), folder / "reliability.png")
    palette = colours_of_overlay(len(test_set.structures))
    for kind, pick in picks.items():
        figure = _overlay_of(pick.case, family, test_set, cases)
        plots.save(figure, folder / "overlays" / f"{kind}.png", dpi=110, palette=palette)
    by_site["bar"] = by_site["site"] + " | " + by_site["model"]
    order = {site: n for n, site in enumerate(test_set.sites)}
    by_site = by_site.sort_values("site", key=lambda column: column.map(order), kind="stable")
    write_table(
        folder / "dice_by_site.csv",
        by_site[["site", "held_out", "model", "bar", "dice", "nsd", "hd95_mm"]],
        {"dice": 5, "nsd": 5, "hd95_mm": 3},
    )
    seconds = scan_seconds(timings)["cpu_s"]
    write_table(
        folder / "family.csv",
        pd.DataFrame(
            [(row.name, row.parameters, seconds[row.name], row.dice) for row in table],
            columns=["model", "parameters", "cpu_seconds", "dice"],
        ),
        {"cpu_seconds": 4, "dice": 5},
    )


def _overlay_of(name: str, family: Sequence[Member], test_set: TestSet, cases: pd.DataFrame) -> Any:
    case = next(case for case in test_set.cases if case.case == name)
    scan = read_volume(case.image)
    shown = shown_members(family)
    own = cases[cases["case"] == name]
    return overlay(
        scan,
        read_label_map(case.label).array,
        {
            member.name: Segmentator(Bundle.read(member.folder), threads=1).segment(scan).labels
            for member in shown
        },
        {str(row["model"]): float(row["dice"]) for row in own.to_dict("records")},
        test_set.structures,
    )
