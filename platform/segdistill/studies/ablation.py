"""What each part of distillation adds: the table of an ablation study, and the row that it chooses."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.studies.runs import SPLIT, Outcome

CONTROL, START = "control", "start"  # the rows that all others are compared with
DECIMALS = 5
RULE = (
    "The row with the highest validation Dice, mean over widths and seeds; but if a cheaper row is "
    "behind it by no more than one standard error of their difference, paired by seed, the cheapest "
    "such row."
)


@dataclass(frozen=True)
class Run:
    """One training of the study.

    Attributes:
        row: what was ablated.
        width: the student's name in the study's parameters, e.g. ``x4``.
        seed: of all its random choices.
        outcome: what it came to.
    """

    row: str
    width: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class Difference:
    """A row's validation Dice minus another's, paired by seed.

    Attributes:
        mean: over the seeds.
        standard_error: of that mean: standard deviation over the root of the number of seeds; None with
            one seed.
        better: seeds with which it is above 0.
        seeds: number of seeds.
    """

    mean: float
    standard_error: float | None
    better: int
    seeds: int


def summarise(runs: Sequence[Run], order: Sequence[str]) -> dict[str, Any]:
    """The study's figures, as ``ablation.json`` has them.

    Args:
        runs: every row with every width and every seed, once.
        order: the rows, cheapest first.

    Raises:
        SegdistillError: a run is missing or there twice.
    """
    scores = table(runs, order)
    widths, seeds = _distinct(run.width for run in runs), _distinct(run.seed for run in runs)
    by_row = {row: scores[number].mean(axis=0) for number, row in enumerate(order)}
    return {
        "split": SPLIT,
        "cases": runs[0].outcome.cases,
        "seeds": seeds,
        "widths": widths,
        "rows": [
            _line(row, width, scores[:, place], order, runs)
            for place, width in enumerate(widths)
            for row in order
        ],
        "overall": [
            {
                "row": row,
                "mean": round(float(own.mean()), DECIMALS),
                "sd": _sd(own),
                "against_best": asdict(paired(own, by_row[best(by_row)])),
            }
            for row, own in by_row.items()
        ],
        "best": best(by_row),
        "chosen": choose(by_row),
        "rule": RULE,
    }


def table(runs: Sequence[Run], order: Sequence[str]) -> NDArray[np.float64]:
    """Validation Dice as (rows, widths, seeds), widths and seeds in the order of the runs.

    Raises:
        SegdistillError: a run is missing or there twice.
    """
    widths, seeds = _distinct(run.width for run in runs), _distinct(run.seed for run in runs)
    found = {(run.row, run.width, run.seed): run.outcome.val_dice for run in runs}
    wanted = [(row, width, seed) for row in order for width in widths for seed in seeds]
    if len(runs) != len(found) or set(wanted) != set(found):
        raise SegdistillError(
            f"the ablation has {len(runs)} runs, not each of {len(order)} rows once with each of "
            f"{len(widths)} widths and {len(seeds)} seeds. Run 'dvc repro -f studies/dvc.yaml:ablation'."
        )
    return np.array([found[key] for key in wanted]).reshape(len(order), len(widths), len(seeds))


def paired(values: NDArray[np.float64], others: NDArray[np.float64]) -> Difference:
    """``values`` minus ``others``, (seeds,) each, the same seeds in the same order."""
    differences = values - others
    count = len(differences)
    return Difference(
        mean=round(float(differences.mean()), DECIMALS),
        standard_error=round(float(differences.std(ddof=1) / count**0.5), DECIMALS)
        if count > 1
        else None,
        better=int((differences > 0).sum()),
        seeds=count,
    )


def best(by_row: Mapping[str, NDArray[np.float64]]) -> str:
    """The row with the highest mean; of equal ones the first, which is the cheapest."""
    return max(by_row, key=lambda row: float(by_row[row].mean()))


def choose(by_row: Mapping[str, NDArray[np.float64]]) -> str:
    """The row that :data:`RULE` chooses: the one-standard-error rule of Breiman et al. 1984, paired.

    Args:
        by_row: by row, cheapest first, (seeds,) validation Dice averaged over the widths.
    """
    top = by_row[best(by_row)]
    for row, own in by_row.items():
        behind = paired(top, own)
        if behind.mean <= (behind.standard_error or 0.0):
            return row
    raise AssertionError("the best row is not behind itself")


def _line(
    row: str, width: str, scores: NDArray[np.float64], order: Sequence[str], runs: Sequence[Run]
) -> dict[str, Any]:
    own = scores[order.index(row)]
    outcomes = [run.outcome for run in runs if (run.row, run.width) == (row, width)]
    line: dict[str, Any] = {
        "row": row,
        "width": width,
        "mean": round(float(own.mean()), DECIMALS),
        "sd": _sd(own),
        "scores": [round(float(score), DECIMALS) for score in own],
    }
    for other in (CONTROL, START):
        known = other in order and other != row
        line[f"against_{other}"] = asdict(paired(own, scores[order.index(other)])) if known else None
    for name in ("seconds_per_step", "data_share", "teacher_share", "student_share"):
        line[name] = round(float(np.mean([getattr(outcome, name) for outcome in outcomes])), DECIMALS)
    line["structures"] = {
        name: _mean(outcome.structures[name] for outcome in outcomes) for name in outcomes[0].structures
    }
    return line


def _sd(values: NDArray[np.float64]) -> float | None:
    return round(float(values.std(ddof=1)), DECIMALS) if len(values) > 1 else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), DECIMALS) if known else None


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
