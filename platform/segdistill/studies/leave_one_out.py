"""What a family loses on a site that it never saw, against the family that was trained on all."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import pandas as pd

from segdistill.evaluation.compare import Comparison, Metric, by_subject, compare_paired
from segdistill.evaluation.members import Member, TestSet
from segdistill.evaluation.summary import METRICS, case_scores
from segdistill.files import SegdistillError

FULL, WITHOUT = "all sites", "without this site"  # what a family was trained on
DECIMALS = 5


def only_site(test_set: TestSet, site: str) -> TestSet:
    """The test cases of one site, which the family that is evaluated has never seen.

    Raises:
        SegdistillError: no such site, it has no labelled test case, or it is held out anyway.
    """
    cases = tuple(replace(case, held_out=True) for case in test_set.cases if case.site == site)
    if not cases:
        raise SegdistillError(f"{site}: no labelled test case of a site of this name.")
    if site in test_set.held_out:
        raise SegdistillError(
            f"{site}: held out of the whole family already; see its figures in the report. "
            "Take it off 'leave_one_site_out.sites' in studies/params.yaml."
        )
    return replace(test_set, cases=cases, held_out=(site,))


def both(without: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Both families' scorecards on the same cases, with the column ``trained_on`` in front.

    Args:
        without: scorecard of the family without the site, on the site's test cases.
        full: scorecard of the full family; of it, the rows of the same members and cases are taken.

    Raises:
        SegdistillError: the full family lacks a member, case or structure that the other one has.
    """
    keys = ["model", "case", "structure"]
    same = without[keys].merge(full, on=keys, how="left", validate="one_to_one")[without.columns]
    missing = same[same["reference_ml"].isna()]
    if len(missing):
        row = missing.iloc[0]
        raise SegdistillError(
            f"the full family's scorecard has no row of {row['model']} on {row['case']}. "
            "Run 'dvc repro evaluate'."
        )
    return pd.concat([without.assign(trained_on=WITHOUT), same.assign(trained_on=FULL)])[
        ["trained_on", *without.columns]
    ].reset_index(drop=True)


def summarise(
    card: pd.DataFrame, family: Sequence[Member], *, site: str, confidence: float, seed: int
) -> dict[str, Any]:
    """A site's figures, as ``leave_one_site_out/SITE.json`` has them.

    By member: both families' means over structures, then cases; and the paired comparison by subject,
    the family without the site minus the full one; with fewer than six subjects it has no interval.

    Args:
        card: of :func:`both`.
        family: the members of the family without the site.
        site: its name.
        confidence: coverage of the intervals.
        seed: of the resampling.
    """
    rows = []
    for member in family:
        own = {
            trained_on: card[(card["trained_on"] == trained_on) & (card["model"] == member.name)]
            for trained_on in (WITHOUT, FULL)
        }
        row: dict[str, Any] = {"name": member.name, "role": member.role, "width": member.width}
        for suffix, trained_on in (("", WITHOUT), ("_full", FULL)):
            scores = case_scores(own[trained_on])
            row |= {f"{metric}{suffix}": _rounded(scores[metric].mean()) for metric in METRICS}
        row["comparisons"] = [
            asdict(comparison)
            for comparison in _compare(own[WITHOUT], own[FULL], member.name, confidence, seed)
        ]
        rows.append(row)
    return {
        "site": site,
        "cases": int(card["case"].nunique()),
        "subjects": int(card["subject"].nunique()),
        "members": rows,
    }


def _compare(
    without: pd.DataFrame, full: pd.DataFrame, name: str, confidence: float, seed: int
) -> list[Comparison]:
    found = []
    for metric in get_args(Metric):
        values, others = by_subject(without, full, metric)
        if len(values):
            found.append(
                compare_paired(
                    values,
                    others,
                    name=f"{name}, {WITHOUT}",
                    against=f"{name}, {FULL}",
                    metric=metric,
                    sites="held_out",
                    confidence=confidence,
                    seed=seed,
                )
            )
    return found


def _rounded(value: float) -> float | None:
    return None if value != value else round(float(value), DECIMALS)
