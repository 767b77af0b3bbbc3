"""All benchmarks in one run: ``make bench``. Nothing else should run on the machine meanwhile."""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import families, growth, packing, page, peak, pipelines
from pipelines.params import read_params
from pipelines.tune import validation_cases
from segdistill.evaluation.machine import describe_machine
from segdistill.files import subfolders, visible, write_json
from segdistill.runtime.cpus import usable_cpus
from segdistill.runtime.setting import Precision, Setting
from segdistill.tuning.choice import Tolerance
from segdistill.tuning.search import tune
from segdistill.volume import read_label_map, read_volume, reoriented, write_volume
from tests.interop.environment import nnunet_python
from tools.demo import serve

BRAIN = (182, 218, 182)  # voxels of 1 mm: the MNI152 template's field of view
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")


def main() -> None:
    """Time everything and write bench.json, the page and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="brain_mri")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one that is not")
    parser.add_argument(
        "--only", nargs="*", choices=list(PARTS), help="parts; the others stay as they were"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    given = parser.parse_args()
    path = given.out / "bench.json"
    results: dict[str, Any] = {} if given.only is None else page.read(path)
    with tempfile.TemporaryDirectory(prefix="segdistill-bench-") as name:
        scratch = Path(name)
        scan = brain_scan(given.task, scratch / "brain.nii.gz")
        for part in given.only or PARTS:
            say(f"== {part}")
            results[part] = PARTS[part](given, scan, scratch)
            results["machine"] = describe_machine()
            write_json(path, results)
    page.write(results, given.out)


def paper_scale(given: argparse.Namespace, scan: Path, scratch: Path) -> dict[str, Any]:
    """A plain nnU-Net family at 1 mm with random weights, instance norm and batch norm."""
    python = nnunet_python()
    rows = []
    instance, batch = (families.make(scratch / norm, norm) for norm in ("instance", "batch"))
    for plain, folding in zip(instance, batch, strict=True):
        windows = [
            pipelines.nnunet(plain, python),
            pipelines.monai(plain),
            pipelines.ours(plain, "ours, reference", Setting.reference(plain.bundle.plan)),
        ]
        windows += [
            pipelines.ours(
                plain, f"ours, windows {precision}", Setting("openvino", precision, "windows", 0.5, 0)
            )
            for precision in ("bf16", "int8")
        ]
        whole = [
            pipelines.ours(
                member, f"ours, whole {precision}{norm}", Setting("openvino", precision, "whole", 0.5, 0)
            )
            for member, norm in ((plain, ""), (folding, ", batch norm"))
            for precision in ("bf16", "int8")
        ]
        rows += pipelines.compare([*windows, *whole], scan, scratch, given.rounds, say)
        last = {row["pipeline"]: row for row in rows if row["member"] == plain.name}
        theirs, own = (
            read_label_map(Path(last[name]["labels"])).array for name in ("nnU-Net", "ours, reference")
        )
        last["ours, reference"]["same_labels_as_nnunet"] = round(float(np.mean(theirs == own)), 6)
    for row in rows:
        del row["labels"]
    return {
        "rows": rows,
        "parameters": {member.name: member.bundle.provenance["parameters"] for member in instance},
        "operations": operations(instance),
    }


def trained(given: argparse.Namespace, scan: Path, scratch: Path) -> dict[str, Any]:
    """The family that the pipeline trained: tuned member by member, then side by side on one scan."""
    family = families.trained(Path(), given.task)
    if not family:
        raise SystemExit("bundles/ is empty: run 'dvc repro export' first, or leave out part 'trained'.")
    knobs = read_params(given.params).tuning
    cases = validation_cases(Path("data/sites") / given.task, knobs.cases)
    tolerance = Tolerance(knobs.mean_loss, knobs.structure_loss)
    tunings, running = {}, []
    for member in family:
        tunings[member.name] = tune(
            member.bundle.folder, cases, tolerance, overlaps=knobs.overlaps, progress=say
        )
        choice = Setting.from_json(tunings[member.name]["choice"], member.name)
        running += [
            pipelines.monai(member),
            pipelines.ours(member, "ours, reference", Setting.reference(member.bundle.plan)),
            pipelines.ours(member, "ours, tuned", choice),
        ]
    rows = pipelines.compare(running, scan, scratch, given.rounds, say)
    packed = packing.pack_and_unpack(scan, Path(rows[0]["labels"]))
    for row in rows:
        del row["labels"]
    x4 = next(member for member in family if member.name == "student-x4")
    tuned = Setting.from_json(tunings["student-x4"]["choice"], "student-x4")
    return {
        "rows": rows,
        "tunings": tunings,
        "packing": packed,
        "growth": {"setting": str(tuned), "rows": growth.grow(x4, tuned, scratch, say)},
        "operations": operations(family),
    }


def cold_start(given: argparse.Namespace, scan: Path, scratch: Path) -> dict[str, Any]:
    """From typing ``bentoml serve`` to being ready with the packaged champion."""
    if not Path("registry", given.task, "bento.json").is_file():
        raise SystemExit(
            "nothing is packaged: run 'dvc repro package' first, or leave out 'cold_start'."
        )
    waited = []
    for _ in range(given.rounds):
        began = time.perf_counter()
        with serve(Path.cwd(), scratch / "serve.log", given.task):
            waited.append(time.perf_counter() - began)
    return {"seconds": round(statistics.median(waited), 2), "starts": len(waited)}


def operations(family: list[families.Contender]) -> dict[str, Any]:
    """The network alone, on one window: operations a second, beside what the machine can do."""
    threads = usable_cpus()
    return {
        precision: {
            "machine": round(peak.machine_peak(precision, threads)),
            **{member.name: peak.reached(member.bundle, precision, threads) for member in family},
        }
        for precision in PRECISIONS
    }


def brain_scan(task: str, path: Path) -> Path:
    """A 1 mm scan of the field of view of :data:`BRAIN`: the middle of a simulated one, or made up."""
    for stored in visible(
        path for site in subfolders(Path("data/sites", task)) for path in (site / "images").glob("*")
    ):
        volume = reoriented(read_volume(stored), "RAS")
        spare = np.array(volume.array.shape) - BRAIN
        if np.allclose(volume.spacing_mm, 1.0, atol=0.01) and spare.min() >= 0:
            start = [spare[0] // 2, spare[1] // 2, spare[2]]  # the neck goes
            x, y, z = (slice(at, at + n) for at, n in zip(start, BRAIN, strict=True))
            affine = volume.affine.copy()
            affine[:3, 3] += affine[:3, :3] @ start
            write_volume(path, volume.array[x, y, z].astype(np.int16), affine)
            return path
    growth.make_scan(path, BRAIN, voxel_mm=1.0)
    return path


def say(line: str) -> None:
    """Progress, for whoever waits."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


PARTS = {"trained": trained, "cold_start": cold_start, "paper_scale": paper_scale}

if __name__ == "__main__":
    main()
