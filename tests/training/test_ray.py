"""Real Ray runs. They share what they can: each start of Ray costs about half a minute on two cores."""

import contextlib
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.training.toy import TRAINING, toy_job

pytestmark = pytest.mark.slow
STEPS = 60
LIMIT_S = 300.0


class _Run:
    """A job on Ray in a process of its own, with two workers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.job, self.runs, self.out = (
            folder / "job.json",
            folder / f"runs-{name}",
            folder / f"{name}.json",
        )
        job = toy_job(folder, steps=STEPS, training=replace(TRAINING, workers=2, checkpoint_steps=5))
        self.job.write_text(json.dumps(job.to_json()))
        self.peers: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "_Run":
        script = Path(__file__).parent / "ray_job.py"
        log = self.out.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.job), str(self.runs), str(self.out)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def reached(self) -> int:
        """The last step of which a checkpoint is on the disk."""
        steps = [0]
        for path in self.runs.glob("*/*/checkpoint/progress.json"):
            with contextlib.suppress(OSError, ValueError):  # removed or copied right now
                steps.append(json.loads(path.read_text())["step"])
        return max(steps)

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + LIMIT_S
        while self.reached() < step:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in family if "RayTrainWorker" in " ".join(one.cmdline())]

    def result(self) -> dict[str, Any]:
        assert self.process is not None
        end = time.monotonic() + LIMIT_S
        while self.process.poll() is None and time.monotonic() < end:
            self.note_connections()
            time.sleep(0.2)
        assert self.process.wait(1) == 0, self.log()
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found

    def note_connections(self) -> None:
        """Remember where the run and all that it started are connected to."""
        assert self.process is not None
        with contextlib.suppress(psutil.Error):
            for one in [root := psutil.Process(self.process.pid), *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    self.peers |= {c.raddr.ip for c in one.net_connections("inet") if c.raddr}

    def log(self) -> str:
        return self.out.with_suffix(".log").read_text()[-3000:]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two workers that nothing disturbs, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("ray")
    run = _Run(folder, "straight").start()
    result = run.result()
    return folder, result | {"peers": run.peers}


def test_two_workers_train_one_network(straight: tuple[Path, dict[str, Any]]) -> None:
    """Two workers with data of their own give one finished network that has learned, and clean up."""
    folder, result = straight
    history = result["history"]
    assert history[-1]["step"] == STEPS
    assert history[-1]["loss"] < history[0]["loss"]
    assert not list((folder / "runs-straight").glob("*/*/"))


def test_a_training_talks_to_this_machine_alone(straight: tuple[Path, dict[str, Any]]) -> None:
    """Driver, Ray and workers hold connections while they train, every one to the loopback address."""
    peers = straight[1]["peers"]
    assert peers
    plain = {peer.removeprefix("::ffff:") for peer in peers}  # IPv4 through an IPv6 socket
    assert all(ipaddress.ip_address(peer).is_loopback for peer in plain), peers


def test_a_killed_worker_costs_nothing_but_time(straight: tuple[Path, dict[str, Any]]) -> None:
    """After kill -9 of a worker the run goes on from its checkpoint to the very same weights."""
    folder, expected = straight
    run = _Run(folder, "killed").start()
    run.wait_for_step(5)
    workers = run.workers()
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    assert run.result()["weights"] == expected["weights"]


def test_a_killed_run_is_continued_by_the_next(straight: tuple[Path, dict[str, Any]]) -> None:
    """After the whole run is killed, the same command goes on to the very same weights."""
    folder, expected = straight
    run = _Run(folder, "stopped").start()
    run.wait_for_step(15)
    assert run.process is not None
    family = psutil.Process(run.process.pid).children(recursive=True)
    for one in (run.process, *family):
        one.kill()
    psutil.wait_procs(family, timeout=30)
    assert not run.out.exists()
    again = _Run(folder, "stopped").start()
    assert again.result()["weights"] == expected["weights"]
    resumed = re.search(r"goes on after step (\d+) of 60", again.log())
    assert resumed, again.log()
    assert 0 < int(resumed[1]) < STEPS
