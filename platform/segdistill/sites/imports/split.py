"""Which subjects go to which split."""

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np

from segdistill.files import SegdistillError
from segdistill.sites.imports.scan import Scan
from segdistill.sites.manifest import Split

Fractions = tuple[float, float, float]


def read_fractions(text: str) -> Fractions:
    """Read ``"0.7,0.1,0.2"``: the shares of train, val and test.

    Raises:
        SegdistillError: not three numbers of at least 0 that add up to 1.
    """
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SegdistillError(f"--split {text}: give three numbers, e.g. 0.7,0.1,0.2.") from error
    if not (train >= 0 and val >= 0 and test >= 0 and abs(train + val + test - 1) < 1e-6):
        raise SegdistillError(
            f"--split {text}: give shares of 0 or more that add up to 1, e.g. 0.7,0.1,0.2."
        )
    return train, val, test


def split_subjects(subjects: Iterable[str], fractions: Fractions, seed: int) -> dict[str, Split]:
    """Assign every subject to a split, at random but the same for the same subjects and seed.

    Counts follow the fractions by largest remainder: each is off by less than one subject.

    Args:
        subjects: names, in any order; repeats count once.
        fractions: shares of train, val and test, adding up to 1.
        seed: of the shuffle.
    """
    names = sorted(set(subjects))
    exact = np.asarray(fractions) * len(names)
    counts = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: len(names) - int(counts.sum())]] += 1
    shuffled = np.random.default_rng(seed).permutation(len(names))
    splits = np.repeat(np.asarray(get_args(Split)), counts)
    return {names[index]: split for index, split in zip(shuffled.tolist(), splits.tolist(), strict=True)}


def assign_splits(
    scans: Sequence[Scan], fractions: Fractions, seed: int, held_out: bool
) -> dict[str, Split]:
    """The split of every subject of a site.

    A held-out site is all ``test``. Otherwise a split that the source sets stays as it is, and where
    the source sets labelled test scans of its own, the other subjects are shared between train and val
    alone. Subjects without any label go to ``train``: they can't be measured against.

    Args:
        scans: all scans of the site.
        fractions: shares of train, val and test, adding up to 1.
        seed: of the shuffle.
        held_out: whether the site is kept out of training.
    """
    subjects = {scan.subject for scan in scans}
    if held_out:
        return dict.fromkeys(subjects, "test")
    fixed: dict[str, Split] = {scan.subject: scan.split for scan in scans if scan.split}
    labelled = {scan.subject for scan in scans if scan.label}
    if any(fixed.get(subject) == "test" for subject in labelled):
        train, val, _ = fractions
        whole = train + val
        if not whole:
            raise SegdistillError(
                "--split: the source has its own test scans; give train or val a share."
            )
        fractions = (train / whole, val / whole, 0.0)
    unlabelled: dict[str, Split] = dict.fromkeys(subjects - labelled, "train")
    return unlabelled | split_subjects(labelled - set(fixed), fractions, seed) | fixed
