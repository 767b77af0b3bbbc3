"""From scorecard and timings to the family table: one line per member, every figure from the rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from segdistill.evaluation.members import Member
from segdistill.family import Figures, Verdict
from segdistill.files import SegdistillError

METRICS = ("dice", "nsd", "hd95_mm")
_SHARES = ("data_share", "teacher_share")  # of a training's time, in its learning curve
#: Decimals of the figures in family.json.
DECIMALS = {
    "dice": 5,
    "dice_held_out_site": 5,
    "nsd": 5,
    "nsd_held_out_site": 5,
    "hd95_mm": 3,
    "hd95_mm_held_out_site": 3,
    "retention": 5,
    "retention_held_out_site": 5,
    "ece": 5,
    "cpu_seconds": 4,
    "cpu_seconds_network": 4,
    "wall_seconds": 4,
    "peak_rss_mb": 1,
    "parameter_reduction": 5,
    "cpu_reduction": 5,
}


def case_scores(card: pd.DataFrame) -> pd.DataFrame:
    """Mean over structures, per model and case: columns model, site, held_out, case, subject, METRICS.

    Structures without a score (in neither map; for HD95 also in only one) are left out of the mean.
    """
    keys = ["model", "site", "held_out", "case", "subject"]
    return card.groupby(keys, sort=False)[list(METRICS)].mean().reset_index()


def site_scores(card: pd.DataFrame) -> pd.DataFrame:
    """Mean over structures, then over a site's cases: columns model, site, held_out, cases, METRICS."""
    groups = case_scores(card).groupby(["model", "site", "held_out"], sort=False)
    return groups[list(METRICS)].mean().assign(cases=groups.size()).reset_index()


def structure_scores(card: pd.DataFrame) -> pd.DataFrame:
    """Mean over cases: columns model, held_out, structure, METRICS."""
    keys = ["model", "held_out", "structure"]
    return card.groupby(keys, sort=False)[list(METRICS)].mean().reset_index()


def missed_structures(card: pd.DataFrame) -> dict[str, int]:
    """Per model: rows with a structure that is in only one of the two maps (Dice 0, no HD95)."""
    one_sided = card["dice"].notna() & card["hd95_mm"].isna()
    return {str(m): int(n) for m, n in one_sided.groupby(card["model"], sort=False).sum().items()}


def step_seconds(timings: pd.DataFrame) -> pd.DataFrame:
    """Median over cases of the CPU and wall seconds of a step: columns model, step, cpu_s, wall_s."""
    groups = timings.groupby(["model", "step"], sort=False)
    return groups[["cpu_s", "wall_s"]].median().reset_index()


def scan_seconds(timings: pd.DataFrame) -> pd.DataFrame:
    """Median over cases of a whole scan's seconds, reading to writing; index model; cpu_s, wall_s."""
    scans = timings.groupby(["model", "case"], sort=False)[["cpu_s", "wall_s"]].sum()
    return scans.groupby("model", sort=False).median()


def family_table(
    family: Sequence[Member],
    card: pd.DataFrame,
    timings: pd.DataFrame,
    memory: pd.DataFrame,
    calibration_errors: Mapping[str, float],
    verdicts: Mapping[str, Verdict],
) -> list[Figures]:
    """The family's figures, a row per member in family order.

    Args:
        family: the members.
        card: the scorecard.
        timings: of the timed cases; a scan's seconds are the median over them, reading to writing.
        memory: peak memory by model.
        calibration_errors: expected calibration error by member.
        verdicts: by student.

    Raises:
        SegdistillError: a member without scores or timings.
    """
    cases = case_scores(card)
    seen, held_out = _means(cases[~cases["held_out"]]), _means(cases[cases["held_out"]])
    missed = missed_structures(card)
    whole = scan_seconds(timings)
    cpu, wall = _numbers(whole["cpu_s"]), _numbers(whole["wall_s"])
    network = _numbers(step_seconds(timings).query("step == 'network'").set_index("model")["cpu_s"])
    peak = _numbers(memory.set_index("model")["peak_rss_mb"])
    measured = (seen, cpu, network, peak, calibration_errors)
    for member in family:
        if not all(member.name in figures for figures in measured):
            raise SegdistillError(
                f"{member.folder}: no scores or no timings of this bundle. Run 'dvc repro -f evaluate'."
            )
    teacher = family[0]
    no_scores: dict[str, float] = {}
    table = []
    for member in family:
        name = member.name
        own, other = seen[name], held_out.get(name, no_scores)
        row: dict[str, Any] = {
            "name": name,
            "role": member.role,
            "width": member.width,
            "parameters": member.parameters,
            "macs": member.macs,
            "retention": _ratio(own["dice"], seen[teacher.name]["dice"]),
            "retention_held_out_site": _ratio(
                other.get("dice"), held_out.get(teacher.name, no_scores).get("dice")
            ),
            "cpu_seconds": cpu[name],
            "cpu_seconds_network": network[name],
            "wall_seconds": wall[name],
            "peak_rss_mb": peak[name],
            "parameter_reduction": 1 - member.parameters / teacher.parameters,
            "cpu_reduction": 1 - cpu[name] / cpu[teacher.name],
            "cases": int(((cases["model"] == name) & ~cases["held_out"]).sum()),
            "cases_held_out_site": int(((cases["model"] == name) & cases["held_out"]).sum()),
            "structures_missed": missed[name],
            "ece": calibration_errors[name],
        }
        row |= {metric: own[metric] for metric in METRICS}
        row |= {f"{metric}_held_out_site": other.get(metric) for metric in METRICS}
        figures = {key: _rounded(key, value) for key, value in row.items()}
        table.append(Figures(**figures, verdict=verdicts.get(name)))
    return table


def training_pace(curves: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """How fast each member was trained and what the time went into, from ``curves/NAME.csv``.

    Returns:
        For every name with a curve: ``steps``, ``samples_per_second`` (patches of all workers over the
        whole training), and the shares of the time ``data_share`` (waiting for patches),
        ``teacher_share`` and ``student_share`` (the rest).
    """
    found = []
    for name in names:
        path = curves / f"{name}.csv"
        curve = pd.read_csv(path) if path.is_file() else pd.DataFrame()
        if not {"step", "seconds_per_step", "samples_per_second", *_SHARES} <= set(curve.columns):
            continue
        steps = curve["step"].diff().fillna(curve["step"])
        time = steps * curve["seconds_per_step"]
        samples, *shares = (
            float((curve[rate] * time).sum() / time.sum()) for rate in ("samples_per_second", *_SHARES)
        )
        found.append(
            {
                "name": name,
                "steps": int(curve["step"].iloc[-1]),
                "samples_per_second": samples,
                **dict(zip(_SHARES, shares, strict=True)),
                "student_share": 1 - sum(shares),
            }
        )
    return found


def _means(cases: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean over cases, by model and metric, of the models with a score at all."""
    return {
        str(model): {metric: float(own[metric].mean()) for metric in METRICS}
        for model, own in cases.groupby("model", sort=False)
        if own["dice"].notna().any()
    }


def _numbers(series: "pd.Series[Any]") -> dict[str, float]:
    return {str(name): float(value) for name, value in series.items()}


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _rounded(key: str, value: Any) -> Any:
    """Fixed decimals, and None for what isn't a number: JSON knows no NaN."""
    if isinstance(value, float) and value != value:
        return None
    return round(value, DECIMALS[key]) if isinstance(value, float) and key in DECIMALS else value
