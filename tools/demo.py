"""The whole platform once: train, promote, package, serve, and segment a held-out scan over HTTP.

``python -m tools.demo`` goes through the task of params.yaml, ``python -m tools.demo TASK``
through the one in tasks/TASK; neither touches what the other made.

Interrupted and started again, it goes on where it was: every step looks at what is there already.
"""

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np

from pipelines.params import Params, read_params
from pipelines.stage import run_stage
from segdistill.family import Figures, read_family
from segdistill.files import SegdistillError, atomic_path, read_json, subfolders, write_json
from segdistill.shown import command
from segdistill.sites.manifest import read_sites
from tools.children import child, environment, run, stop_politely

PROMOTED = "student-x4"
#: Seconds in which a service must be ready, and then answer.
READY_S = 120.0
ANSWER_S = 600.0

# The header fields that say where the voxels are, and in which unit.
GRID = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True)
class Asked:
    """A scan to send, and what is known about it.

    Attributes:
        site: the site it is from.
        case: its name.
        held_out: whether the site was kept out of training.
        simulated: whether its subjects and scanner are simulated.
        note: what its manifest says a reader must know.
        image: the scan's file.
        label: the reference label map's file.
        structures: label code to structure name.
    """

    site: str
    case: str
    held_out: bool
    simulated: bool
    note: str
    image: Path
    label: Path
    structures: dict[int, str]


@dataclass(frozen=True)
class Answered:
    """What came back for a scan.

    Attributes:
        labels: the label map's file.
        picture: the overlay's file.
        dice: structure name to Dice against the reference; NaN where neither has the structure.
        seconds: wall time of the request, s.
    """

    labels: Path
    picture: Path
    dice: dict[str, float]
    seconds: float


def main() -> None:
    """Go through all steps, in the current folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", help="a folder of tasks/; without: the task of params.yaml")
    root = Path.cwd()
    pipeline = pipeline_of(root, parser.parse_args().task)
    params = read_params(pipeline / "params.yaml")
    task = params.task
    began = time.monotonic()

    def step(number: int, title: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"\n== {number}/5  {title}  [{minutes}:{seconds:02d}]", flush=True)

    step(1, "the pipeline: sites, teacher, students, evaluation, registry (dvc repro)")
    repro(root, pipeline)
    family = read_family(root / "reports" / task / "family.json")

    step(2, "the promotion: which version is to be served")
    promote(root, params, family)

    step(3, "the package of exactly that version (dvc repro)")
    repro(root, pipeline)

    step(4, "a scan of a site that training never saw, over HTTP")
    asked = choose(root / "data" / "sites" / task)
    where = "held out of training" if asked.held_out else "trained on; no site is held out"
    print(f"scan: {asked.image.relative_to(root)} ({asked.site}: {where})", flush=True)
    out = root / "demo"
    out.mkdir(exist_ok=True)
    with serve(root, out / "serve.log", task) as address:
        answered = segment(address, asked, out)
    print(f"grid of the label map: the scan's own; {answered.seconds:.1f} s from sending to having it")

    step(5, "what is there now")
    print(summary(root, params, family, asked, answered))


def pipeline_of(root: Path, task: str | None) -> Path:
    """The folder with a task's ``params.yaml``: the root, or ``tasks/TASK``.

    Raises:
        SegdistillError: there is no such task.
    """
    own = read_params(root / "params.yaml").task
    if task in (None, own):
        return root
    folder = root / "tasks" / str(task)
    if not (folder / "params.yaml").is_file():
        known = [own, *sorted(path.parent.name for path in root.glob("tasks/*/params.yaml"))]
        raise SegdistillError(f"{folder}: no such task. Known: {', '.join(known)}.")
    return folder


def repro(root: Path, pipeline: Path) -> None:
    """Run what changed of a task's pipeline, its output shown as it comes."""
    file = (pipeline / "dvc.yaml").relative_to(root)
    run([sys.executable, "-m", "dvc", "repro", str(file)], cwd=root)


def promote(root: Path, params: Params, family: Sequence[Figures]) -> None:
    """Promote the x4 student, unless somebody has already promoted a version."""
    task, alias = params.task, params.registry.alias
    champion = read_json(root / "registry" / task / "champion.json")
    if champion.get("version") is not None:
        print(f"{alias} is already v{champion['version']} {champion['name']}: kept")
        return
    rows = {row.name: row for row in family}
    if PROMOTED not in rows:
        raise SegdistillError(
            f"reports/{task}/family.json: it has no {PROMOTED}, which the demo promotes. Put x4 back "
            "under 'students' of the task, or promote another: segdistill promote NAME --reason ..."
        )
    row, teacher = rows[PROMOTED], family[0]
    reason = (
        f"make demo: {_share(row.retention, 1)} of the teacher's Dice "
        f"at {row.cpu_seconds / teacher.cpu_seconds:.0%} of its CPU time"
    )
    command = [sys.executable, "-m", "segdistill.cli", "promote", PROMOTED, "--task", task]
    if row.verdict is None or not row.verdict.non_inferior:
        print(f"{PROMOTED} isn't shown to be non-inferior; the demo promotes it all the same")
        command.append("--override")
    run([*command, "--alias", alias, "--reason", reason], cwd=root)


def choose(sites: Path) -> Asked:
    """The first labelled test case of a held-out site, or of any site if none is held out.

    Args:
        sites: ``data/sites/TASK``.

    Raises:
        SegdistillError: no site, or no labelled test case.
    """
    found = [
        Asked(
            site.site,
            case.case,
            site.held_out,
            site.simulated,
            site.note,
            folder / case.scan,
            folder / case.label,
            site.structures,
        )
        for folder, site in read_sites(sites)
        for case in site.cases
        if case.split == "test" and case.label is not None
    ]
    if not found:
        raise SegdistillError(f"{sites}: no test case has a label map. Import a site with some.")
    return next((asked for asked in found if asked.held_out), found[0])


@contextlib.contextmanager
def serve(root: Path, log: Path, task: str) -> Iterator[str]:
    """Serve the champion on a free port of this machine for the block; yields its address.

    Args:
        root: the repository's root.
        log: file for what the service prints.
        task: whose champion is served.

    Raises:
        SegdistillError: it ended, or wasn't ready in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("wb") as output,
        child(
            command, cwd=root, env=environment() | {"SEGDISTILL_TASK": task}, output=output
        ) as process,
    ):
        print(f"bentoml serve: {address} ...", flush=True)
        deadline = time.monotonic() + READY_S
        while not _ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise SegdistillError(
                    f"{log}: the service {'ended' if process.poll() is not None else 'is not ready'}. "
                    "Its last words:\n" + "\n".join(said)
                )
            time.sleep(0.1)
        print("bentoml serve: ready", flush=True)
        yield address


def _ready(address: str) -> bool:
    try:
        # Loopback never goes through a proxy.
        with httpx.Client(trust_env=False, timeout=5) as client:
            return client.get(f"{address}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def segment(address: str, asked: Asked, out: Path) -> Answered:
    """Send a scan, keep label map, volumes and overlay in ``out``, and check what came back.

    Raises:
        SegdistillError: the service refused the scan, or the label map isn't on the scan's grid.
    """
    began = time.monotonic()
    try:
        with httpx.Client(trust_env=False, timeout=ANSWER_S) as client, asked.image.open("rb") as scan:
            reply = client.post(f"{address}/segment", files={"scan": (asked.image.name, scan)})
    except httpx.HTTPError as error:
        raise SegdistillError(f"{address}: the service gave no answer ({error!r}).") from error
    seconds = time.monotonic() - began
    if reply.status_code != 200:
        raise SegdistillError(f"{address}/segment: {reply.status_code} {reply.text[:500]}")
    labels = out / f"{asked.case}.labels.nii.gz"
    with atomic_path(labels) as partial:
        partial.write_bytes(reply.content)
    write_json(
        out / f"{asked.case}.volumes.json",
        {
            "model": reply.headers["X-Segdistill-Model"],
            "version": int(reply.headers["X-Segdistill-Version"]),
            "bundle_digest": reply.headers["X-Segdistill-Digest"],
            "volumes_ml": json.loads(reply.headers["X-Segdistill-Volumes-Ml"]),
        },
    )
    different = grid_differences(asked.image, labels)
    if different:
        raise SegdistillError(f"{labels}: not on the scan's grid, {', '.join(different)} differ.")
    return _compared(asked, labels, out / f"{asked.case}.png", seconds)


def grid_differences(scan: Path, labels: Path) -> list[str]:
    """What two NIfTI files state differently about where their voxels are; empty: the same grid."""
    a: Any = nib.load(scan)
    b: Any = nib.load(labels)
    named = [name for name in GRID if not np.array_equal(a.header[name], b.header[name])]
    if a.shape != b.shape:
        named.append("shape")
    if not np.array_equal(a.header["pixdim"][:4], b.header["pixdim"][:4]):
        named.append("voxel sizes")
    if not np.array_equal(a.affine, b.affine):
        named.append("affine")
    return named


def _compared(asked: Asked, labels: Path, picture: Path, seconds: float) -> Answered:
    # Slow to import, and of no use before there is something to compare.
    from segdistill.evaluation.metrics import score_label_map
    from segdistill.evaluation.overlays import overlay
    from segdistill.volume import read_label_map, read_volume

    scan, reference, found = (
        read_volume(asked.image),
        read_label_map(asked.label),
        read_label_map(labels),
    )
    # The tolerance is of NSD, which isn't shown here.
    scores = score_label_map(found.array, reference.array, scan.spacing_mm, asked.structures, 1.0)
    dice = {score.structure: score.dice for score in scores}
    mean = float(np.nanmean(list(dice.values())))
    figure = overlay(
        scan, reference.array, {"over HTTP": found.array}, {"over HTTP": mean}, asked.structures
    )
    with atomic_path(picture) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return Answered(labels, picture, dice, seconds)


def summary(
    root: Path,
    params: Params,
    family: Sequence[Figures],
    asked: Asked,
    answered: Answered,
) -> str:
    """All that a person needs to know at the end, and how to go on.

    A champion of another family is named as such, and no figure of this family is given as its own.
    """
    task = params.task
    champion = read_json(root / "registry" / task / "champion.json")
    registered = read_json(root / "registry" / task / "registered.json")
    if champion["version"] in [entry["version"] for entry in registered.values()]:
        kin, real_scan = "", real_scan_lines(root / "reports" / task / "unseen.json", champion["name"])
    else:
        kin, real_scan = ", not of this family: it is what is served, until somebody promotes", []
    here = Path(sys.executable).parent
    tools = here.relative_to(root) if here.is_relative_to(root) else here
    scan = asked.image.relative_to(root)
    where = "a held-out site" if asked.held_out else "a site that was trained on"
    said = f" ({asked.note.partition('. ')[0] or 'SIMULATED'})" if asked.simulated else ""
    segment = "http://127.0.0.1:3000/segment"
    several = sum((path / "bento.json").is_file() for path in subfolders(root / "registry")) > 1
    which = (f"SEGDISTILL_TASK={task} ", f" TASK={task}") if several else ("", "")
    store = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    mlflow = command(tools / "mlflow", "ui", "--workers", "1", "--backend-store-uri", store)
    registry = f"{mlflow}    (or 'make ui')"
    return "\n".join(
        [
            f"The family of {task}{said}:",
            "",
            *family_table(family),
            "",
            f"Champion   v{champion['version']} {champion['name']}{kin}",
            f"Report     reports/{task}/report.html",
            f"Label map  {answered.labels.relative_to(root)} of {asked.case} from {where}: "
            f"mean Dice {float(np.nanmean(list(answered.dice.values()))):.3f}",
            f"Overlay    {answered.picture.relative_to(root)}",
            *real_scan,
            "",
            "Go on with",
            f"  {f'the registry at {store}' if store.startswith('http') else registry}",
            f"  {which[0]}{command(tools / 'bentoml', 'serve')}    (or 'make serve{which[1]}')",
            f"  {command('curl', '-F', f'scan=@{scan}', '-o', 'labels.nii.gz', segment)}",
            "",
            "Research use, not a medical device.",
        ]
    )


def real_scan_lines(path: Path, champion: str) -> list[str]:
    """One line on the real scan that no training saw, none where it wasn't looked at.

    Args:
        path: ``reports/TASK/unseen.json``.
        champion: name of the model that is served.
    """
    rows = {row["name"]: row for row in read_json(path)["models"]} if path.is_file() else {}
    if champion not in rows or rows[champion]["dice"] is None:
        return []
    each = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}"
        for name, value in rows[champion]["groups"].items()
        if value is not None
    )
    return [
        f"Real scan  {champion} on a scan never trained on: Dice {rows[champion]['dice']:.3f} ({each})"
    ]


def _share(value: float | None, decimals: int) -> str:
    return "none" if value is None else f"{value:.{decimals}%}"


def family_table(family: Sequence[Figures]) -> list[str]:
    """The family in aligned columns, one line per member under a heading."""
    rows = [["member", "parameters", "Dice", "held-out site", "retention", "CPU s", "peak MB"]]
    for row in family:
        held_out = row.dice_held_out_site
        rows.append(
            [
                row.name,
                f"{row.parameters:,}",
                f"{row.dice:.4f}",
                "none" if held_out is None else f"{held_out:.4f}",
                _share(row.retention, 2),
                f"{row.cpu_seconds:.2f}",
                f"{row.peak_rss_mb:.0f}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


if __name__ == "__main__":
    stop_politely()
    run_stage(main)
