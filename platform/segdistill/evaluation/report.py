"""One HTML page with every figure and picture in it: no script, no font, no request to anywhere.

It is made of the files in ``reports/TASK`` alone, so what other stages and studies left there is shown
beside the evaluation.
"""

import base64
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from segdistill.evaluation.compare import Comparison, read_comparisons
from segdistill.evaluation.members import width_label
from segdistill.evaluation.order import out_of_order
from segdistill.evaluation.score import read_scorecard
from segdistill.evaluation.summary import (
    site_scores,
    step_seconds,
    structure_scores,
    training_pace,
)
from segdistill.evaluation.verdict import MEASURE_NAMES
from segdistill.family import Figures, read_family
from segdistill.files import atomic_path, read_json, visible

DASH = "\N{EN DASH}"
#: What studies and the check on a real scan leave beside the evaluation; a section each, if it is there.
ABLATION, LEFT_OUT, UNSEEN = "ablation.json", "leave_one_site_out", "unseen.json"


def write_report(reports: Path, path: Path) -> None:
    """Render the page to ``path``.

    Args:
        reports: folder with the evaluation's files and, as far as there are some, the learning curves
            below ``curves/`` and what studies wrote.
        path: the page.

    Raises:
        SegdistillError: a file of the evaluation is missing.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "places": places,
        "count": count,
        "percent": percent,
        "signed": signed,
        "millimetres": millimetres,
        "width_label": width_label,
        "words": lambda name: name.replace("_", " "),
    }
    template = environment.from_string(
        resources.files("segdistill.evaluation").joinpath("report.html.j2").read_text("utf-8")
    )
    with atomic_path(path) as partial:
        partial.write_text(template.render(_context(reports)), "utf-8")


def _context(reports: Path) -> dict[str, Any]:
    facts, table = read_json(reports / "evaluation.json"), read_family(reports / "family.json")
    comparisons = read_comparisons(reports / "comparisons.json")
    card = read_scorecard(reports / "scorecard.csv")
    timings, memory = (pd.read_csv(reports / name) for name in ("timings.csv", "memory.csv"))
    sites, structures, steps = site_scores(card), structure_scores(card), step_seconds(timings)
    roles = {row.name: row.role for row in table}
    pace = training_pace(reports / "curves", list(roles))
    return {
        "facts": facts,
        "all_simulated": set(facts["simulated"]) == set(facts["sites"]),
        "table": table,
        "has_held_out": bool(facts["held_out"]),
        "comparisons": [c for c in comparisons if c.metric == "dice"],
        "distances": [c for c in comparisons if c.metric == "hd95_mm"],
        "verdicts": {row.name: row.verdict for row in table if row.verdict},
        "measures": MEASURE_NAMES,
        "headline": _headline(table, comparisons, facts["shown"]),
        "roles": roles,
        "sites": [
            {
                "site": site,
                "held_out": site in facts["held_out"],
                "cases": int(sites[sites["site"] == site]["cases"].iloc[0]),
                "dice": _by_model(sites[sites["site"] == site], "dice"),
            }
            for site in facts["sites"]
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
            for structure in facts["structures"]
        ],
        "models": list(roles),
        "steps": list(dict.fromkeys(steps["step"])),
        "seconds": {
            (str(row["model"]), str(row["step"])): float(row["cpu_s"])
            for row in steps.to_dict("records")
        },
        "timed_cases": list(dict.fromkeys(timings["case"])),
        "memory_case": memory["case"].iloc[0],
        "pace": pace,
        "out_of_order": out_of_order(table, pace),
        "ablation": _if_there(reports / ABLATION),
        "unseen": _if_there(reports / UNSEEN),
        "left_out": [read_json(path) for path in visible((reports / LEFT_OUT).glob("*.json"))],
        "pictures": _pictures(reports),
    }


def _if_there(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _pictures(reports: Path) -> dict[str, str]:
    """Pictures as data addresses, by the stem of their names."""
    files = [*(reports / "plots").glob("**/*.png"), *reports.glob("*.png")]
    return {
        file.stem: "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
        for file in sorted(files)
    }


def _headline(
    table: Sequence[Figures], comparisons: Sequence[Comparison], shown: Sequence[str]
) -> dict[str, Any] | None:
    """The shown student's row with its two comparisons on seen sites; None without a student."""
    student = next((row for row in table if row.role == "student" and row.name in shown), None)
    if student is None:
        return None
    seen = [
        c for c in comparisons if c.name == student.name and c.sites == "seen" and c.metric == "dice"
    ]
    teacher = table[0]
    return {
        "row": student,
        "teacher_row": teacher,
        "control": next((c for c in seen if c.against != teacher.name), None),
        "teacher": next((c for c in seen if c.against == teacher.name), None),
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
