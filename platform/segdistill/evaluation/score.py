"""The scorecard: every bundle on every test case, through the pipeline that serves it."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from segdistill.evaluation.members import Member, TestCase, TestSet
from segdistill.files import SegdistillError, atomic_path
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.cpus import usable_cpus
from segdistill.runtime.segment import Segmentator
from segdistill.volume import grid_difference, read_label_map, read_volume

COLUMNS = (
    "model",
    "role",
    "width",
    "site",
    "held_out",
    "case",
    "subject",
    "structure",
    "dice",
    "nsd",
    "hd95_mm",
    "volume_ml",
    "reference_ml",
)
#: Decimals of every figure in the file: enough for any table, few enough for a readable diff.
DECIMALS = {"dice": 5, "nsd": 5, "hd95_mm": 3, "volume_ml": 3, "reference_ml": 3}

Progress = Callable[[str], None]
Row = dict[str, str | float | bool]


@dataclass(frozen=True)
class Scorer:
    """The bundles of a family, loaded in this process, ready to be scored case by case."""

    members: tuple[tuple[Member, Segmentator], ...]
    structures: dict[int, str]
    tolerance_mm: float

    @classmethod
    def load(
        cls, members: Iterable[Member], structures: dict[int, str], tolerance_mm: float, threads: int
    ) -> "Scorer":
        """Read and verify the bundles.

        Raises:
            SegdistillError: a bundle's digests don't match, or its structures aren't the sites'.
        """
        loaded = []
        for member in members:
            bundle = Bundle.read(member.folder)
            own = {structure.code: structure.name for structure in bundle.plan.structures}
            if own != structures:
                raise SegdistillError(
                    f"{member.folder}: segments {own}, but the sites are labelled with {structures}. "
                    "Train and export the family again from these sites."
                )
            loaded.append((member, Segmentator(bundle, threads=threads)))
        return cls(tuple(loaded), structures, tolerance_mm)

    def score(self, case: TestCase) -> list[Row]:
        """Segment one case with every member and compare with its reference.

        Raises:
            SegdistillError: an unreadable file, or a reference that isn't on the scan's grid.
        """
        from segdistill.evaluation.metrics import score_label_map  # seconds of imports, workers only

        scan = read_volume(case.image)
        reference = read_label_map(case.label)
        if difference := grid_difference(scan, reference):
            raise SegdistillError(
                f"{case.label}: not on the grid of {case.image}: {difference}. Import the site again."
            )
        rows: list[Row] = []
        for member, segmentator in self.members:
            labels = segmentator.segment(scan).labels
            rows += [
                {
                    "model": member.name,
                    "role": member.role,
                    "width": member.width,
                    "site": case.site,
                    "held_out": case.held_out,
                    "case": case.case,
                    "subject": case.subject,
                    "structure": score.structure,
                    "dice": score.dice,
                    "nsd": score.nsd,
                    "hd95_mm": score.hd95_mm,
                    "volume_ml": score.volume_ml,
                    "reference_ml": score.reference_ml,
                }
                for score in score_label_map(
                    labels, reference.array, scan.spacing_mm, self.structures, self.tolerance_mm
                )
            ]
        return rows


def make_scorecard(
    family: Sequence[Member],
    test_set: TestSet,
    tolerance_mm: float,
    *,
    workers: int = 0,
    progress: Progress = lambda _: None,
) -> pd.DataFrame:
    """Score the whole family on all test cases.

    Cases are shared out over processes with one thread each: with small networks that keeps the
    processor busier than many threads on one case, and the label maps don't depend on the number of
    cores.

    Args:
        family: the members, in the order of the rows.
        test_set: the cases.
        tolerance_mm: surface distance that NSD counts as agreement, mm.
        workers: processes; 0: as many as the process may use cores; 1: no extra process.
        progress: told one line per case.

    Returns:
        One row per model, case and structure with the columns of :data:`COLUMNS`, in that order.
    """
    workers = min(workers or usable_cpus(), len(test_set.cases))
    structures = dict(test_set.structures)
    rows: list[Row] = []
    if workers <= 1:
        scorer = Scorer.load(family, structures, tolerance_mm, threads=1)
        for done, case in enumerate(test_set.cases, start=1):
            rows += scorer.score(case)
            progress(f"scored {case.case} ({done} of {len(test_set.cases)})")
    else:
        # Largest first, so that no process is left with a large scan at the end.
        order = sorted(test_set.cases, key=lambda case: (-case.image.stat().st_size, case.case))
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),  # forking a process with threads may hang
            initializer=_start_worker,
            initargs=(tuple(family), structures, tolerance_mm),
        ) as pool:
            waiting = {pool.submit(_score_in_worker, case): case for case in order}
            for done, future in enumerate(as_completed(waiting), start=1):
                rows += future.result()
                progress(f"scored {waiting[future].case} ({done} of {len(order)})")
    return _in_order(pd.DataFrame(rows, columns=list(COLUMNS)), family, test_set)


_scorer: Scorer | None = None


def _start_worker(family: tuple[Member, ...], structures: dict[int, str], tolerance_mm: float) -> None:
    global _scorer  # one per process: loading a family once per case would cost more than scoring it
    import torch

    torch.set_num_threads(1)
    _scorer = Scorer.load(family, structures, tolerance_mm, threads=1)


def _score_in_worker(case: TestCase) -> list[Row]:
    if _scorer is None:
        raise RuntimeError("the worker was not started with a scorer")
    return _scorer.score(case)


def _in_order(card: pd.DataFrame, family: Sequence[Member], test_set: TestSet) -> pd.DataFrame:
    """Rows by model (family order), site, case and structure (code order), whatever ended first."""
    ranks = pd.DataFrame(
        {
            "model": card["model"].map({member.name: n for n, member in enumerate(family)}),
            "case": card["case"].map({case.case: n for n, case in enumerate(test_set.cases)}),
            "structure": card["structure"].map(
                {name: n for n, name in enumerate(test_set.structures.values())}
            ),
        }
    )
    order = ranks.sort_values(["model", "case", "structure"], kind="stable").index
    return card.loc[order].reset_index(drop=True)


def write_table(path: Path, table: pd.DataFrame, decimals: dict[str, int]) -> None:
    """Write a CSV with fixed decimals: the same bytes for the same figures.

    NaN is an empty cell. Columns that ``decimals`` doesn't name are written as they are.
    """
    shown = table.copy()
    for column, places in decimals.items():
        shown[column] = [("" if pd.isna(v) else f"{v:.{places}f}") for v in table[column]]
    with atomic_path(path) as partial:
        shown.to_csv(partial, index=False, lineterminator="\n")


def read_scorecard(path: Path) -> pd.DataFrame:
    """Read a scorecard back.

    Raises:
        SegdistillError: missing, or not a scorecard.
    """
    text = dict.fromkeys(("model", "role", "site", "case", "subject", "structure"), str)
    try:
        card = pd.read_csv(path, dtype=text)
    except (OSError, ValueError) as error:
        raise SegdistillError(f"{path}: can't be read ({error}). Run 'dvc repro evaluate'.") from error
    missing = [column for column in COLUMNS if column not in card.columns]
    if missing:
        raise SegdistillError(f"{path}: no column {', '.join(missing)}. Run 'dvc repro evaluate'.")
    return card
