"""Which way of running a bundle is fastest here, and keeps the Dice of the reference.

Every setting is measured on real cases before it can be chosen: its Dice, structure by structure,
must stay within a tolerance of the Dice of the reference.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.overlap import dice_by_code
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.plan import Plan
from segdistill.runtime.setting import BackendName, Precision, Setting, has_openvino, processor
from segdistill.tuning.choice import DEFAULT, Tolerance, best
from segdistill.volume import grid_difference, read_label_map, read_volume

_DECIMALS = 5

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TuningCase:
    """A scan to measure on.

    Attributes:
        scan: its file.
        labels: its reference label map; None: what the reference setting finds takes its place, so any
            difference counts as a loss.
    """

    scan: Path
    labels: Path | None = None


def candidates(
    plan: Plan, *, int8: bool, overlaps: Sequence[float] = (), openvino: bool | None = None
) -> list[Setting]:
    """Every setting to measure with all threads, the reference first.

    Args:
        plan: the bundle's plan.
        int8: whether the bundle has a quantised network.
        overlaps: of windows to try beside the plan's own.
        openvino: whether OpenVINO is there; None: look.
    """
    if openvino is None:
        openvino = has_openvino()
    ways: list[tuple[BackendName, Precision]] = [("onnxruntime", "f32")]
    if openvino:
        ways += [("openvino", "f32"), ("openvino", "bf16")]
    if int8:  # ONNX Runtime's takes twice to four times as long as OpenVINO's
        ways.append(("openvino" if openvino else "onnxruntime", "int8"))
    reference = Setting.reference(plan)
    modes = [(plan.mode, plan.overlap)]
    modes += [("windows", overlap) for overlap in overlaps if overlap != plan.overlap]
    if plan.mode != "whole" and plan.convention == "own":  # nnU-Net's goes with windows
        modes.append(("whole", plan.overlap))
    found = [
        Setting(backend, precision, mode, overlap, 0)
        for mode, overlap in modes
        for backend, precision in ways
    ]
    return [reference, *(setting for setting in found if setting != reference)]


def tune(
    folder: Path,
    cases: Sequence[TuningCase],
    tolerance: Tolerance = DEFAULT,
    *,
    overlaps: Sequence[float] = (),
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure every candidate on this machine, each in a process of its own, and choose.

    All are measured with all threads; those that keep the Dice also with one thread. Nothing else should
    run meanwhile.

    Args:
        folder: of the bundle.
        cases: real cases; not those that the family is evaluated on.
        tolerance: what a setting may lose.
        overlaps: of windows to try beside the plan's own.
        progress: told one line per setting.

    Returns:
        What ``tuning.json`` holds: the bundle's digest, the processor, the tolerance, a row per setting
        with its evidence, and the choice. Seconds are of the whole pipeline, from reading the file to
        having the label map, median over cases and rounds.

    Raises:
        SegdistillError: no case, one that can't be read, a label map that isn't on its scan's grid, or
            the reference itself can't be run.
    """
    if not cases:
        raise SegdistillError(f"{folder}: tuning needs a scan at least.")
    bundle = Bundle.read(folder)
    names = {entry.code: entry.name for entry in bundle.plan.structures}
    known = [_reference(case) for case in cases]
    truth: list[NDArray[Any]] = []
    before: dict[str, float] = {}
    rows: list[dict[str, Any]] = []

    def measure(setting: Setting) -> None:
        row: dict[str, Any] = {"setting": setting.to_json()}
        try:
            found, costs = _alone(folder, setting, [case.scan for case in cases])
        except SegdistillError as error:
            if not rows:
                raise
            rows.append(row | {"refused": str(error), "within": False})
            progress(f"{setting}: left out, {error}")
            return
        if not rows:  # the reference
            truth.extend(
                own if given is None else given for own, given in zip(found, known, strict=True)
            )
            before.update(_dice(found, truth, names))
        now = _dice(found, truth, names)
        row |= _evidence(before, now) | costs
        row["within"] = tolerance.allows(row)
        rows.append(row)
        verdict = "" if row["within"] else ", outside the tolerance"
        progress(
            f"{setting}: {costs['seconds']:.2f} s, {costs['cpu_seconds']:.2f} CPU s, "
            f"{costs['peak_rss_mb']:.0f} MB, "
            f"Dice {100 * row['dice_change']:+.2f} points{verdict}"
        )

    for setting in candidates(bundle.plan, int8=bundle.int8 is not None, overlaps=overlaps):
        measure(setting)
    for row in [row for row in rows if row["within"]]:
        measure(Setting(**{**row["setting"], "threads": 1}))
    return {
        "bundle_digest": bundle.digest,
        "processor": processor(),
        "tolerance": asdict(tolerance),
        "cases": len(cases),
        "labelled": sum(case.labels is not None for case in cases),
        "rows": rows,
        "choice": best([row for row in rows if row["within"]])["setting"],
    }


def _reference(case: TuningCase) -> NDArray[Any] | None:
    if case.labels is None:
        return None
    labels = read_label_map(case.labels)
    if difference := grid_difference(read_volume(case.scan), labels):
        raise SegdistillError(
            f"{case.labels}: not on the grid of {case.scan}: {difference}. Give the label map that "
            "belongs to the scan."
        )
    return labels.array


def _alone(
    folder: Path, setting: Setting, scans: Sequence[Path]
) -> tuple[list[NDArray[np.uint8]], dict[str, float]]:
    """Label maps and costs from a process that runs :mod:`segdistill.tuning.measure`."""
    with tempfile.TemporaryDirectory(prefix="segdistill-tune-") as scratch:
        labels = Path(scratch) / "labels.npz"
        words = [str(folder), json.dumps(setting.to_json()), str(labels), *map(str, scans)]
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "segdistill.tuning.measure", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
            raise SegdistillError(said[-1])
        with np.load(labels) as maps:
            found = [maps[name] for name in maps.files]
    return found, json.loads(done.stdout.strip().splitlines()[-1])


def _dice(
    found: Sequence[NDArray[Any]], truth: Sequence[NDArray[Any]], names: Mapping[int, str]
) -> dict[str, float]:
    """Dice by structure, mean over the cases that have it in the truth; NaN where none has."""
    each = []
    for labels, reference in zip(found, truth, strict=True):
        each.append(dice_by_code(labels, reference, max(names), in_reference=True))
    own = {name: [dice[code - 1] for dice in each] for code, name in names.items()}
    present = {name: [float(value) for value in dice if value == value] for name, dice in own.items()}
    return {name: statistics.fmean(dice) if dice else math.nan for name, dice in present.items()}


def _evidence(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, Any]:
    change = {name: now[name] - before[name] for name in before if not math.isnan(before[name])}
    if not change:
        raise SegdistillError("the cases show none of the structures. Tune with scans that do.")
    worst = min(change, key=lambda name: change[name])
    return {
        "dice": round(statistics.fmean(now[name] for name in change), _DECIMALS),
        "dice_change": round(statistics.fmean(change.values()), _DECIMALS),
        "worst_structure": worst,
        "worst_change": round(change[worst], _DECIMALS),
    }
