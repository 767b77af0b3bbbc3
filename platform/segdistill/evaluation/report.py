"""One HTML page with every figure and picture in it: no script, no font, no request to anywhere."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from segdistill.evaluation.compare import Comparison
from segdistill.evaluation.members import Member, TestSet
from segdistill.evaluation.overlays import Pick, shown_members
from segdistill.evaluation.summary import site_scores, step_seconds, structure_scores
from segdistill.evaluation.verdict import MEASURE_NAMES, Verdict
from segdistill.files import atomic_path

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class ReportInput:
    """All that the page shows.

    Attributes:
        task: the task's name.
        family: the members in order.
        test_set: the cases.
        table: the rows of family.json.
        card: the scorecard.
        timings: the timing rows.
        memory: the memory rows.
        comparisons: the paired comparisons.
        verdicts: one per student.
        margin: of non-inferiority, a share of the teacher's Dice.
        machine: see :func:`~segdistill.evaluation.machine.describe_machine`.
        picks: the cases of the overlays by kind, ``typical`` and ``worst``.
        digests: bundle digest by member.
        tolerance_mm: of NSD, mm.
        confidence: of the intervals.
        plots: folder of the PNG files.
    """

    task: str
    family: Sequence[Member]
    test_set: TestSet
    table: Sequence[Mapping[str, Any]]
    card: pd.DataFrame
    timings: pd.DataFrame
    memory: pd.DataFrame
    comparisons: Sequence[Comparison]
    verdicts: Sequence[Verdict]
    margin: float
    machine: Mapping[str, Any]
    picks: Mapping[str, Pick]
    digests: Mapping[str, str]
    tolerance_mm: float
    confidence: float
    plots: Path


def write_report(path: Path, given: ReportInput) -> None:
    """Render the page to ``path``."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "places": places,
        "count": count,
        "percent": percent,
        "signed": signed,
        "probability": probability,
        "millimetres": millimetres,
        "words": lambda name: name.replace("_", " "),
    }
    template = environment.from_string(
        resources.files("segdistill.evaluation").joinpath("report.html.j2").read_text("utf-8")
    )
    with atomic_path(path) as partial:
        partial.write_text(template.render(_context(given)), "utf-8")


def _context(given: ReportInput) -> dict[str, Any]:
    sites = site_scores(given.card)
    structures = structure_scores(given.card)
    shown = shown_members(given.family)
    steps = step_seconds(given.timings)
    roles = {member.name: member.role for member in given.family}
    commits = sorted({member.git_commit for member in given.family if member.git_commit})
    return {
        "task": given.task,
        "test_set": given.test_set,
        "all_simulated": set(given.test_set.simulated) == set(given.test_set.sites),
        "table": [
            {**row, "width_label": member.width_label, "digest": given.digests[member.name]}
            for row, member in zip(given.table, given.family, strict=True)
        ],
        "has_unseen": bool(given.test_set.held_out),
        "comparisons": [c for c in given.comparisons if c.metric == "dice"],
        "distances": [c for c in given.comparisons if c.metric == "hd95_mm"],
        "verdicts": given.verdicts,
        "margin": given.margin,
        "measures": MEASURE_NAMES,
        "headline": _headline(given, shown),
        "roles": roles,
        "sites": [
            {
                "site": site,
                "held_out": site in given.test_set.held_out,
                "cases": int(sites[sites["site"] == site]["cases"].iloc[0]),
                "dice": _by_model(sites[sites["site"] == site], "dice"),
            }
            for site in given.test_set.sites
        ],
        "structures": [
            {
                "structure": structure,
                **{
                    metric: _by_model(
                        structures[(structures["structure"] == structure) & ~structures["held_out"]],
                        metric,
                    )
                    for metric in ("dice", "nsd", "hd95_mm")
                },
            }
            for structure in given.test_set.structures.values()
        ],
        "shown": [member.name for member in shown],
        "models": [member.name for member in given.family],
        "steps": list(dict.fromkeys(steps["step"])),
        "seconds": {
            (str(row["model"]), str(row["step"])): float(row["cpu_s"])
            for row in steps.to_dict("records")
        },
        "timed_cases": list(dict.fromkeys(given.timings["case"])),
        "memory_case": given.memory["case"].iloc[0],
        "machine": given.machine,
        "picks": given.picks,
        "tolerance_mm": given.tolerance_mm,
        "confidence": given.confidence,
        "commits": commits,
        "pictures": {
            file.stem: "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
            for file in sorted(given.plots.glob("*.png"))
        },
    }


def _headline(given: ReportInput, shown: Sequence[Member]) -> dict[str, Any] | None:
    """The shown student's row with its two comparisons on seen sites; None without a student."""
    student = next((member for member in shown if member.role == "student"), None)
    if student is None:
        return None
    seen = [
        c
        for c in given.comparisons
        if c.name == student.name and c.sites == "seen" and c.metric == "dice"
    ]
    teacher = given.family[0].name
    return {
        "row": next(row for row in given.table if row["name"] == student.name),
        "teacher_row": given.table[0],
        "width_label": student.width_label,
        "control": next((c for c in seen if c.against != teacher), None),
        "teacher": next((c for c in seen if c.against == teacher), None),
    }


def _by_model(rows: pd.DataFrame, metric: str) -> dict[str, float]:
    return {str(name): float(value) for name, value in zip(rows["model"], rows[metric], strict=True)}


def places(value: float | None, decimals: int) -> str:
    """A figure with so many decimals; a dash where there is none."""
    return DASH if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def count(value: int) -> str:
    """A large count as people read it: 5.62 M, 12.3 k, 950; multiply-accumulates as 12.3 G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return str(value)


def percent(value: float | None, decimals: int = 1) -> str:
    """A share as a percentage; a dash where there is none."""
    return DASH if value is None or math.isnan(value) else f"{100 * value:.{decimals}f}%"


def signed(value: float | None, decimals: int = 2) -> str:
    """A Dice difference in points (hundredths) with its sign; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    return f"{100 * value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def millimetres(value: float | None) -> str:
    """A difference in mm with its sign; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def probability(value: float | None) -> str:
    """A p-value; below a thousandth only that."""
    if value is None or math.isnan(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
