"""By how much one member is better than another on the same subjects, and how sure that is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from segdistill.evaluation.members import Member
from segdistill.files import SegdistillError, read_json

RESAMPLES = 9999
ENOUGH = 6
"""Subjects that an interval needs: a bootstrap of fewer shuffles a handful, and is far too narrow."""
DECIMALS = 5
Metric = Literal["dice", "hd95_mm"]


@dataclass(frozen=True)
class Comparison:
    """A paired comparison, subject by subject.

    Attributes:
        name: the member looked at.
        against: the member it is compared with.
        metric: ``dice`` (a fraction, more is better) or ``hd95_mm`` (less is better).
        sites: ``seen`` (took part in training) or ``held_out``.
        subjects: number of subjects, each with the mean over its cases.
        difference: mean over subjects of the metric of ``name`` minus that of ``against``.
        low: lower end of the interval of ``difference``; None with fewer than six subjects.
        high: upper end.
        confidence: coverage of the interval, e.g. 0.95.
        better: number of subjects on whom ``name`` does better.
        ratio: mean of ``name`` divided by that of ``against`` (of Dice, against the teacher: retention).
        ratio_low: lower end of the interval of ``ratio``; None, too, where ``against`` has 0 in one.
        ratio_high: upper end.
    """

    name: str
    against: str
    metric: Metric
    sites: Literal["seen", "held_out"]
    subjects: int
    difference: float
    low: float | None
    high: float | None
    confidence: float
    better: int
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None

    @property
    def surely_better(self) -> bool:
        """Whether the whole interval of the difference is in favour of ``name``."""
        if self.low is None or self.high is None:
            return False
        return self.high < 0 if self.metric == "hd95_mm" else self.low > 0


def compare_family(
    family: Sequence[Member], card: pd.DataFrame, confidence: float, seed: int
) -> list[Comparison]:
    """Every student against its control (same width) and the teacher, seen and held-out sites apart."""
    found = []
    for name, against in pairs(family):
        for held_out, sites in ((False, "seen"), (True, "held_out")):
            rows = card[card["held_out"] == held_out]
            own, other = (rows[rows["model"] == member] for member in (name, against))
            for metric in get_args(Metric):
                values, others = by_subject(own, other, metric)
                if len(values):
                    found.append(
                        compare_paired(
                            values,
                            others,
                            name=name,
                            against=against,
                            metric=metric,
                            sites=sites,
                            confidence=confidence,
                            seed=seed,
                        )
                    )
    return found


def read_comparisons(path: Path) -> list[Comparison]:
    """Read ``comparisons.json``.

    Raises:
        SegdistillError: it isn't a list of comparisons.
    """
    try:
        return [Comparison(**entry) for entry in read_json(path)]
    except TypeError as error:
        raise SegdistillError(
            f"{path}: not a list of comparisons ({error}). Run 'dvc repro evaluate'."
        ) from error


def by_subject(
    own: pd.DataFrame, other: pd.DataFrame, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A metric of two members on the subjects that both have a figure for: ``(N,)`` each, same order.

    It is the mean over structures, then over a subject's cases. HD95 is taken over the structures of a
    case for which both have one: else whoever misses the hard structures would seem the better.

    Args:
        own: rows of a scorecard, of one member.
        other: those of the other one, on the same cases.
        metric: the column that is compared.
    """
    keys = ["subject", "case", "structure"]
    both = own[[*keys, metric]].merge(other[[*keys, metric]], on=keys, validate="one_to_one")
    if metric == "hd95_mm":
        both = both.dropna()
    columns = [f"{metric}_x", f"{metric}_y"]
    cases = both.groupby(["subject", "case"])[columns].mean()
    subjects = cases.groupby("subject").mean().dropna()
    return subjects[columns[0]].to_numpy(float), subjects[columns[1]].to_numpy(float)


def pairs(family: Sequence[Member]) -> Iterator[tuple[str, str]]:
    """(student, its control) and (student, teacher) for every student, in family order."""
    controls = {member.width: member.name for member in family if member.role == "control"}
    teacher = next(member.name for member in family if member.role == "teacher")
    for member in family:
        if member.role == "student":
            if member.width in controls:
                yield member.name, controls[member.width]
            yield member.name, teacher


def compare_paired(
    values: NDArray[np.float64],
    others: NDArray[np.float64],
    *,
    name: str,
    against: str,
    metric: Metric,
    sites: Any,
    confidence: float,
    seed: int,
) -> Comparison:
    """Compare two members on the same subjects.

    The interval is a bootstrap over test subjects (BCa, 9999 resamples, seeded) of one training per
    member: it covers the choice of subjects, not another training run. There is no p-value, as neither
    subjects of one simulated anatomy nor one training are a sample of patients or of trainings. Several
    pairs are compared without correction.

    Args:
        values: (N,) the metric per subject of ``name``.
        others: (N,) that of ``against``, the same subjects in the same order.
        name: the member looked at.
        against: the member it is compared with.
        metric: what the values are.
        sites: ``seen`` or ``held_out``.
        confidence: coverage of the interval.
        seed: of the resampling.
    """
    differences = values - others
    low, high = _interval((differences,), _mean, confidence, seed)
    total, base = float(np.sum(values)), float(np.sum(others))
    ratio_low, ratio_high = None, None
    if others.min() > 0:  # else a resample may have nothing to divide by
        ratio_low, ratio_high = _interval((values, others), _ratio_of_means, confidence, seed)
    return Comparison(
        name=name,
        against=against,
        metric=metric,
        sites=sites,
        subjects=len(differences),
        difference=round(float(np.mean(differences)), DECIMALS),
        low=low,
        high=high,
        confidence=confidence,
        better=int(np.sum(differences < 0 if metric == "hd95_mm" else differences > 0)),
        ratio=round(total / base, DECIMALS) if base else None,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
    )


def _mean(values: NDArray[np.float64], axis: int = -1) -> Any:
    return np.mean(values, axis=axis)


def _ratio_of_means(values: NDArray[np.float64], others: NDArray[np.float64], axis: int = -1) -> Any:
    return np.mean(values, axis=axis) / np.mean(others, axis=axis)


def _interval(
    samples: tuple[NDArray[np.float64], ...], statistic: Any, confidence: float, seed: int
) -> tuple[float | None, float | None]:
    """Bootstrap interval of a statistic of paired samples; None with fewer than six subjects."""
    if len(samples[0]) < ENOUGH:
        return None, None
    value = float(statistic(*samples))
    spread = samples[0]
    if len(samples) > 1:  # of a ratio: zero where it is the same for every subject
        spread = samples[0] * samples[1].mean() - samples[1] * samples[0].mean()
    if np.ptp(spread) < 1e-12:  # every resample gives the same figure; BCa would divide by zero
        return round(value, DECIMALS), round(value, DECIMALS)
    interval = stats.bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return round(float(interval.low), DECIMALS), round(float(interval.high), DECIMALS)
