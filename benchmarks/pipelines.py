"""Pipelines side by side: each in a process of its own, one scan each in turn, round after round."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.families import Contender
from segdistill.runtime.cpus import usable_cpus
from segdistill.runtime.setting import Setting

_SLOW_S = 20.0  # a first scan that takes longer counts: warming up is a small part of it


@dataclass(frozen=True)
class Pipeline:
    """A member in a pipeline.

    Attributes:
        member: its name.
        name: of the pipeline, e.g. ``nnU-Net``.
        command: starts the process that answers as :mod:`benchmarks.talk` says.
    """

    member: str
    name: str
    command: tuple[str, ...]


def ours(member: Contender, name: str, setting: Setting) -> Pipeline:
    """A member through the runtime."""
    words = (str(member.bundle.folder), json.dumps(setting.to_json()))
    return Pipeline(member.name, name, (sys.executable, "-m", "benchmarks.worker", "ours", *words))


def monai(member: Contender) -> Pipeline:
    """A member through MONAI's transforms and sliding windows."""
    words = (str(member.model), str(member.plan))
    return Pipeline(member.name, "MONAI", (sys.executable, "-m", "benchmarks.worker", "monai", *words))


def nnunet(member: Contender, python: Path) -> Pipeline:
    """A member through nnU-Net's predictor."""
    worker = Path(__file__).with_name("nnunet_worker.py")
    words = (str(worker), str(member.nnunet), str(usable_cpus()))
    return Pipeline(member.name, "nnU-Net", (str(python), *words))


def compare(
    pipelines: Sequence[Pipeline], scan: Path, scratch: Path, rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Segment one scan with every pipeline in turn, ``rounds`` times.

    Returns:
        A row per pipeline: medians of wall and CPU seconds, peak memory, medians by step where the
        pipeline says them, and the file of its label map.
    """
    running = [_start(pipeline, scratch) for pipeline in pipelines]
    answers: list[list[dict[str, Any]]] = [[] for _ in pipelines]
    maps = [scratch / f"{number}.nii.gz" for number in range(len(pipelines))]
    try:
        for turn in range(rounds + 1):
            for pipeline, process, own, labels in zip(pipelines, running, answers, maps, strict=True):
                if process.poll() is not None:
                    continue
                own.append(_ask(process, pipeline, scan, labels))
                line = f"{own[-1]['seconds']:.2f} s, {own[-1]['cpu_seconds']:.2f} CPU s"
                say(f"round {turn}: {pipeline.member}, {pipeline.name}: {line}")
                if turn == rounds - 1 and own[0]["seconds"] > _SLOW_S:
                    process.kill()  # its last turn: the others need the memory
                    process.wait()
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [
        _row(pipeline, own if own[0]["seconds"] > _SLOW_S else own[1:]) | {"labels": str(labels)}
        for pipeline, own, labels in zip(pipelines, answers, maps, strict=True)
    ]


def _row(pipeline: Pipeline, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "member": pipeline.member,
        "pipeline": pipeline.name,
        "scans": len(answers),
        "peak_rss_mb": round(answers[-1]["peak_rss_mb"]),
    }
    for name in ("seconds", "cpu_seconds"):
        row[name] = round(statistics.median(answer[name] for answer in answers), 4)
    steps = answers[-1]["steps"] or {}
    row["cpu_by_step"] = {
        step: round(statistics.median(answer["steps"][step][1] for answer in answers), 5)
        for step in steps
    }
    return row


def _start(pipeline: Pipeline, scratch: Path) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if pipeline.name == "nnU-Net":
        for name in ("raw", "preprocessed", "results"):
            kept[f"nnUNet_{name}"] = str(scratch)
    process = subprocess.Popen(
        pipeline.command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=_log(pipeline, scratch).open("w"),
        text=True,
        env=kept,
    )
    _line(process, pipeline, scratch)
    return process


def _log(pipeline: Pipeline, scratch: Path) -> Path:
    return scratch / f"{pipeline.member}, {pipeline.name}.log"


def _ask(process: subprocess.Popen[str], pipeline: Pipeline, scan: Path, labels: Path) -> dict[str, Any]:
    assert process.stdin is not None  # noqa: S101 - it was opened so
    process.stdin.write(json.dumps({"scan": str(scan), "labels": str(labels)}) + "\n")
    process.stdin.flush()
    return _line(process, pipeline, labels.parent)


def _line(process: subprocess.Popen[str], pipeline: Pipeline, scratch: Path) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101 - it was opened so
    line = process.stdout.readline()
    while line and not line.startswith("{"):  # nnU-Net greets on standard output when it is imported
        line = process.stdout.readline()
    if not line:
        said = _log(pipeline, scratch).read_text().strip().splitlines()[-15:]
        raise SystemExit("\n".join([f"{pipeline.member} in {pipeline.name} ended:", *said]))
    found: dict[str, Any] = json.loads(line)
    return found
