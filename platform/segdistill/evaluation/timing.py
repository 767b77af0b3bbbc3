"""What a scan costs: CPU and wall seconds per pipeline step, and the memory of a fresh process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from segdistill.evaluation.members import Member, TestCase
from segdistill.files import SegdistillError
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import Segmentator, Timings
from segdistill.volume import read_volume

COLUMNS = ("model", "site", "case", "step", "wall_s", "cpu_s")
MEMORY_COLUMNS = ("model", "case", "peak_rss_mb", "wall_s")
DECIMALS = {"wall_s": 4, "cpu_s": 4}
MEMORY_DECIMALS = {"peak_rss_mb": 1, "wall_s": 2}

Progress = Callable[[str], None]

RUNS = 3  # of every member on every case


def time_family(
    family: Sequence[Member],
    cases: Sequence[TestCase],
    *,
    threads: int = 0,
    progress: Progress = lambda _: None,
) -> pd.DataFrame:
    """Time every member on the same cases, in turn on each, in this one process.

    Each member segments the first case once untimed, as a service has long been warm. Then each has
    :data:`RUNS` turns on every case, of which the one of median CPU time counts: another process may get
    in the way of one. In every next round another member begins, so that none always profits from a
    cache that another one filled. Files are read as they are and written as ``.nii.gz``. Nothing else
    should run meanwhile.

    Args:
        family: the members.
        cases: the cases.
        threads: threads of the network; 0: as served by default.
        progress: told one line per case.

    Returns:
        One row per model, case and step: ``wall_s`` and ``cpu_s`` in seconds, CPU time summed over the
        threads of the process.
    """
    loaded = [(member, Segmentator(Bundle.read(member.folder), threads=threads)) for member in family]
    rows = []
    with tempfile.TemporaryDirectory(prefix="segdistill-timing-") as scratch:
        output = Path(scratch) / "labels.nii.gz"
        for _, segmentator in loaded:
            segmentator.segment_file(cases[0].image, output)
        for number, case in enumerate(cases):
            runs: dict[str, list[Timings]] = {member.name: [] for member, _ in loaded}
            for turn in range(number * RUNS, (number + 1) * RUNS):
                first = turn % len(loaded)
                for member, segmentator in loaded[first:] + loaded[:first]:
                    runs[member.name].append(segmentator.segment_file(case.image, output).timings)
            rows += [
                (name, case.site, case.case, step, wall, cpu)
                for name, timings in runs.items()
                for step, (wall, cpu) in median_run(timings).items()
            ]
            progress(f"timed the family on {case.case} ({number + 1} of {len(cases)})")
    rank = {member.name: n for n, member in enumerate(family)}
    # The sort is stable: cases and steps stay in the order they were run in.
    return pd.DataFrame(sorted(rows, key=lambda row: rank[str(row[0])]), columns=list(COLUMNS))


def median_run(runs: Sequence[Timings]) -> Timings:
    """The run whose CPU time over all steps is the median of the runs'; of two, the longer."""
    return sorted(runs, key=lambda timings: sum(cpu for _, cpu in timings.values()))[len(runs) // 2]


def measure_memory(
    family: Sequence[Member], cases: Sequence[TestCase], *, progress: Progress = lambda _: None
) -> pd.DataFrame:
    """Peak memory of ``python -m segdistill.runtime`` on the largest of the cases, a process per member.

    Returns:
        One row per model: ``peak_rss_mb`` in MB and ``wall_s``, the seconds from the start of a cold
        process to its end.

    Raises:
        SegdistillError: the process failed or printed no such figure.
    """
    largest = max(cases, key=lambda case: (read_volume(case.image).array.size, case.case))
    rows = []
    with tempfile.TemporaryDirectory(prefix="segdistill-memory-") as scratch:
        for member in family:
            output = Path(scratch) / f"{member.name}.nii.gz"
            rows.append((member.name, largest.case, *_peak_of_fresh_process(member, largest, output)))
    progress(f"measured the memory of {len(family)} fresh processes on {largest.case}")
    return pd.DataFrame(rows, columns=list(MEMORY_COLUMNS))


def _peak_of_fresh_process(member: Member, case: TestCase, output: Path) -> tuple[float, float]:
    files = map(str, (member.folder, case.image, output))
    # Linux hands a parent's resident memory down as its child's first peak, across exec. A shell in
    # between is the parent that counts, and a small one.
    shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
    command = [*shell, sys.executable, "-m", "segdistill.runtime", *files]
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own module; the shell gets its words as arguments
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    wall = time.perf_counter() - start
    try:
        if done.returncode:
            raise ValueError(f"exit status {done.returncode}")
        return float(json.loads(done.stdout.strip().splitlines()[-1])["peak_rss_mb"]), wall
    except (ValueError, KeyError, IndexError) as error:
        raise SegdistillError(
            f"{member.folder}: 'python -m segdistill.runtime' gave no memory figure on {case.image} "
            f"({error}). It said: {done.stderr.strip()[-500:]}"
        ) from error
