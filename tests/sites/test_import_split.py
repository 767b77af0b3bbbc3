"""Which subjects go to which split on import."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdistill.files import SegdistillError
from segdistill.sites.imports.scan import Scan
from segdistill.sites.imports.split import assign_splits, read_fractions, split_subjects

SHARES = st.tuples(*[st.integers(0, 10)] * 3).filter(any).map(lambda t: tuple(v / sum(t) for v in t))


@given(st.sets(st.text(min_size=1, max_size=4), max_size=60), SHARES, st.integers(0, 2**32))
def test_counts_follow_the_fractions_to_less_than_one_subject(
    subjects: set[str], fractions: tuple[float, float, float], seed: int
) -> None:
    """Every subject has one split, counts are off by less than one, a share of zero gets nobody."""
    splits = split_subjects(subjects, fractions, seed)
    assert set(splits) == subjects
    for part, share in zip(("train", "val", "test"), fractions, strict=True):
        count = sum(split == part for split in splits.values())
        assert abs(count - share * len(subjects)) < 1
        assert share or not count


@given(st.lists(st.text(min_size=1, max_size=4), max_size=30), SHARES, st.integers(0, 99), st.randoms())
def test_order_and_repeats_of_subjects_do_not_matter(
    subjects: list[str], fractions: tuple[float, float, float], seed: int, random: object
) -> None:
    """The same subjects and seed give the same splits, in whatever order they were found."""
    shuffled = [*subjects, *subjects[:2]]
    random.shuffle(shuffled)
    assert split_subjects(shuffled, fractions, seed) == split_subjects(subjects, fractions, seed)


def test_another_seed_gives_another_split() -> None:
    """The seed chooses who goes where."""
    subjects = [f"s{number}" for number in range(20)]
    first, second = (split_subjects(subjects, (0.5, 0.0, 0.5), seed) for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("text", ["0.7,0.3", "a,b,c", "0.5,0.1,0.2", "-0.1,0.1,1.0", "nan,0,1", ""])
def test_fractions_that_make_no_sense_are_refused(text: str) -> None:
    """Shares must be three numbers from 0 that add up to 1."""
    with pytest.raises(SegdistillError, match="--split"):
        read_fractions(text)


def scan(name: str, subject: str, labelled: bool = True, split: str | None = None) -> Scan:
    """A scan that need not be on disk."""
    return Scan(name, subject, Path(name), Path("label") if labelled else None, split=split)


def test_the_sources_own_test_scans_stay_test_and_get_no_company() -> None:
    """Where the source has labelled test scans, the others go to train and val alone."""
    scans = [scan(f"t{n}", f"t{n}", split="test") for n in range(3)]
    scans += [scan(f"s{n}", f"s{n}") for n in range(8)]
    splits = assign_splits(scans, (0.6, 0.2, 0.2), 0, held_out=False)
    assert {splits[f"t{n}"] for n in range(3)} == {"test"}
    assert [splits[f"s{n}"] for n in range(8)].count("train") == 6
    assert [splits[f"s{n}"] for n in range(8)].count("val") == 2


def test_a_source_with_test_scans_needs_a_share_for_the_others() -> None:
    """All to test leaves nothing for the scans that the source calls training scans."""
    scans = [scan("a", "a", split="test"), scan("b", "b")]
    with pytest.raises(SegdistillError, match="train or val"):
        assign_splits(scans, (0.0, 0.0, 1.0), 0, held_out=False)


def test_subjects_without_labels_go_to_train_and_take_nobodys_place() -> None:
    """Unlabelled subjects are in train and the labelled ones are still shared by the fractions."""
    scans = [scan(f"u{n}", f"u{n}", labelled=False) for n in range(5)]
    scans += [scan(f"s{n}", f"s{n}") for n in range(10)]
    splits = assign_splits(scans, (0.5, 0.2, 0.3), 0, held_out=False)
    assert {splits[f"u{n}"] for n in range(5)} == {"train"}
    assert [splits[f"s{n}"] for n in range(10)].count("test") == 3


def test_a_held_out_site_is_all_test() -> None:
    """Held out means that no subject is trained on, labelled or not."""
    scans = [scan("a", "a"), scan("b", "b", labelled=False)]
    assert set(assign_splits(scans, (1.0, 0.0, 0.0), 0, held_out=True).values()) == {"test"}
