"""What each part of distillation adds: the table of an ablation study, and the row that it chooses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segdistill.studies.rows import CONTROL, FAIR, START
from segdistill.studies.runs import SPLIT, Outcome

#: How long a run takes: until validation is flat; as many steps as START; as much time as START.
Budget = Literal["plateau", "steps", "time"]
_BUDGETS: Mapping[Budget, str] = {
    "plateau": "until flat",
    "steps": "equal steps",
    "time": "equal time",
}
DECIMALS = 5
RULE = (
    "Each row in the time that 'start' takes: the one with the highest validation Dice, mean over "
    "widths, seeds and subjects; but if a row above it in the table is behind by no more than one "
    "standard error of their difference, the topmost such row."
)
_SHARES = ("data_share", "teacher_share", "student_share")


@dataclass(frozen=True)
class Run:
    """One training of the study.

    Attributes:
        row: what was ablated.
        width: the student's name in the study's parameters, e.g. ``x4``.
        seed: of all its random choices.
        budget: how long it takes.
        rate: its peak learning rate over the width's.
    """

    row: str
    width: str
    seed: int
    budget: Budget
    rate: float


@dataclass(frozen=True)
class Difference:
    """A row's validation Dice minus another's, paired by seed and subject.

    Attributes:
        mean: over seeds and subjects.
        standard_error: of that mean, see :func:`paired`; None with one seed and one subject.
        low: lower end of the interval; None likewise.
        high: upper end.
        better: seeds with which it is above 0, mean over subjects.
        seeds: number of seeds.
        subjects: number of validation subjects.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    better: int
    seeds: int
    subjects: int


Outcomes = Mapping[Run, Outcome]


def tuned(outcomes: Outcomes, row: str, width: str, seed: int, rates: Sequence[float]) -> float | None:
    """The learning rate with which a row does best on validation; None while one of them is missing.

    Args:
        outcomes: what is there.
        row: one that is trained to its plateau.
        width: of the student.
        seed: the one with which all rates are tried.
        rates: over the width's own.
    """
    if len(rates) == 1:
        return rates[0]
    tried = {rate: outcomes.get(Run(row, width, seed, "plateau", rate)) for rate in rates}
    scores = {rate: outcome.val_dice for rate, outcome in tried.items() if outcome is not None}
    return max(scores, key=lambda rate: scores[rate]) if len(scores) == len(rates) else None


def steps_in_time(start: Outcome, own: Outcome) -> int:
    """The steps that a row gets in the time that ``start`` took, by the pace that it had."""
    return max(1, round(start.steps * start.seconds_per_step / own.seconds_per_step))


def summarise(
    outcomes: Outcomes, order: Sequence[str], unfinished: int, confidence: float
) -> dict[str, Any]:
    """The study's figures so far, as ``ablation.json`` has them.

    Args:
        outcomes: of all runs that are finished, one rate of each row but of those that are tuned.
        order: the rows, simplest first.
        unfinished: runs that are missing; with any, nothing is chosen.
        confidence: coverage of the intervals.
    """
    runs = {run: outcome for run, outcome in outcomes.items() if run.rate == _rate(outcomes, run)}
    widths, seeds = _distinct(run.width for run in runs), _distinct(run.seed for run in runs)
    keys = [
        (row, width, budget)
        for width in widths
        for row in order
        for budget in _BUDGETS
        if any((run.row, run.width, run.budget) == (row, width, budget) for run in runs)
    ]
    by_row = {} if unfinished else {row: _in_time(runs, row, widths) for row in order if row != FAIR}
    top = best(by_row) if by_row else None
    first = next(iter(runs.values()))
    return {
        "split": SPLIT,
        "cases": first.cases,
        "subjects": len(first.subjects),
        "seeds": seeds,
        "widths": widths,
        "confidence": confidence,
        "unfinished": unfinished,
        "rows": [_line(runs, *key, confidence) for key in keys],
        "rates": [
            {"row": run.row, "width": run.width, "rate": run.rate, "dice": outcome.val_dice}
            for run, outcome in outcomes.items()
            if any((o.row, o.width) == (run.row, run.width) and o.rate != run.rate for o in outcomes)
            and run.seed == seeds[0]
        ],
        "overall": [
            {
                "row": row,
                "mean": round(float(own.mean()), DECIMALS),
                "against_best": asdict(paired(own, by_row[top or row], confidence)),
            }
            for row, own in by_row.items()
        ],
        "best": top,
        "chosen": choose(by_row) if by_row else None,
        "rule": RULE,
    }


def paired(values: NDArray[np.float64], others: NDArray[np.float64], confidence: float) -> Difference:
    """``values`` minus ``others``, (seeds, subjects) each, the same ones in the same order.

    Seeds and subjects are both drawn from many, and crossed: the variance of the mean is that of the
    seeds' means over their number plus that of the subjects' means over theirs (what is left over counts
    twice, which is on the safe side). The interval is Student's t, with Satterthwaite's freedom.
    """
    differences = values - others
    parts = [
        (float(means.var(ddof=1)) / len(means), len(means) - 1)
        for means in (differences.mean(axis=1), differences.mean(axis=0))
        if len(means) > 1
    ]
    mean, variance = float(differences.mean()), sum(part for part, _ in parts)
    error = half = None
    if parts:
        error = variance**0.5
        freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance else 1.0
        half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Difference(
        mean=round(mean, DECIMALS),
        standard_error=None if error is None else round(error, DECIMALS),
        low=None if half is None else round(mean - half, DECIMALS),
        high=None if half is None else round(mean + half, DECIMALS),
        better=int((differences.mean(axis=1) > 0).sum()),
        seeds=differences.shape[0],
        subjects=differences.shape[1],
    )


def best(by_row: Mapping[str, NDArray[np.float64]]) -> str:
    """The row with the highest mean; of equal ones the first, which is the simplest."""
    return max(by_row, key=lambda row: float(by_row[row].mean()))


def choose(by_row: Mapping[str, NDArray[np.float64]]) -> str:
    """The row that :data:`RULE` chooses: the one-standard-error rule of Breiman et al. 1984, paired.

    Args:
        by_row: by row, simplest first, (seeds, subjects) validation Dice averaged over the widths.
    """
    top = by_row[best(by_row)]
    for row, own in by_row.items():
        behind = paired(top, own, 0.5)
        if behind.mean <= (behind.standard_error or 0.0):
            return row
    raise AssertionError("the best row is not behind itself")


def _rate(outcomes: Outcomes, run: Run) -> float | None:
    """The rate that a run's row goes by: the best of those that were tried with the first seed."""
    same = [o for o in outcomes if (o.row, o.width, o.budget) == (run.row, run.width, run.budget)]
    tried = [o for o in same if o.seed == same[0].seed]
    return max(tried, key=lambda o: outcomes[o].val_dice).rate


def _of(runs: Outcomes, row: str, width: str, budget: Budget) -> dict[int, Outcome]:
    """The outcomes of one line of the table, by seed."""
    return {
        run.seed: runs[run]
        for run in sorted(runs, key=lambda run: run.seed)
        if (run.row, run.width, run.budget) == (row, width, budget)
    }


def _usual(runs: Outcomes, row: str, width: str) -> dict[int, Outcome]:
    """The outcomes of a row that was trained in one way only, by seed."""
    return _of(runs, row, width, "plateau") or _of(runs, row, width, "steps")


def _in_time(runs: Outcomes, row: str, widths: Sequence[str]) -> NDArray[np.float64]:
    """(seeds, subjects) Dice of a row in the time of START, mean over the widths."""
    by_width = [_of(runs, row, width, "time") or _usual(runs, row, width) for width in widths]
    return np.asarray(np.mean([_scores(own.values()) for own in by_width], axis=0))


def _scores(outcomes: Iterable[Outcome]) -> NDArray[np.float64]:
    """(seeds, subjects) Dice."""
    return np.array(
        [[outcome.subjects[name] for name in sorted(outcome.subjects)] for outcome in outcomes]
    )


def _line(runs: Outcomes, row: str, width: str, budget: Budget, confidence: float) -> dict[str, Any]:
    own = _of(runs, row, width, budget)
    outcomes = list(own.values())
    scores = np.array([outcome.val_dice for outcome in outcomes])
    line: dict[str, Any] = {
        "row": row,
        "width": width,
        "budget": budget,
        "label": f"{row.replace('_', ' ')}, {_BUDGETS[budget]}",
        "mean": round(float(scores.mean()), DECIMALS),
        "sd": round(float(scores.std(ddof=1)), DECIMALS) if len(scores) > 1 else None,
        "scores": [round(float(score), DECIMALS) for score in scores],
    }
    for other in (CONTROL, FAIR, START):
        theirs = _usual(runs, other, width)
        both = [seed for seed in own if seed in theirs and other != row]
        line[f"against_{other}"] = (
            asdict(
                paired(
                    _scores(own[seed] for seed in both),
                    _scores(theirs[seed] for seed in both),
                    confidence,
                )
            )
            if both
            else None
        )
    line["learning_rate"] = outcomes[0].learning_rate
    line["steps"] = round(float(np.mean([outcome.steps for outcome in outcomes])))
    for name in ("seconds_per_step", *_SHARES):
        line[name] = round(float(np.mean([getattr(outcome, name) for outcome in outcomes])), DECIMALS)
    line["minutes"] = round(
        float(np.mean([outcome.steps * outcome.seconds_per_step for outcome in outcomes])) / 60, 2
    )
    line["structures"] = {
        name: _mean(outcome.structures[name] for outcome in outcomes) for name in outcomes[0].structures
    }
    return line


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), DECIMALS) if known else None


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
