"""Run a job: on Ray Train (one machine, or the cluster that RAY_ADDRESS names), or in this process."""

import fcntl
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdistill import telemetry
from segdistill.files import SegdistillError
from segdistill.runtime.cpus import usable_cpus
from segdistill.training.job import Job

# The loop brings torch and MONAI, seconds of imports each time. Ray's controller needs this module and
# neither of them, so the loop is imported where it is used.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from segdistill.network.unet import UNet

_QUIET = {
    **telemetry.OFF,
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",
}
# Training on a CPU frees and takes the same large blocks at every step. Kept by the allocator instead of
# given back to the system, they cost no page faults: 1.4 to 1.9 times faster steps.
CPU_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
PROGRESS = "progress.log"  # what the workers say, in the folder of the checkpoints
KEPT = "constant"  # checkpoint at the end of the constant phase, there too, where more steps may follow
_FAILURES = 2  # times that lost workers are replaced, from the last checkpoint


def run(job: Job, runs: Path) -> "tuple[UNet, list[dict[str, Any]]]":
    """Train ``job`` on Ray Train, or continue where an interrupted run of the same job stopped.

    Workers log to MLflow as they train. Those of a cluster may be on other machines: a tracking address
    that only this machine can reach isn't given to them, and the curve is logged from here at the end.

    Args:
        job: what to train.
        runs: folder for the checkpoints of one task, on storage that every worker sees. This job's are
            in ``NAME/DIGEST``; they go once the network is in hand, but one where the steps ended the
            constant phase, from which the same job with more steps goes on. What other jobs of the same
            name left there is removed.

    Returns:
        The trained network and its learning curve.

    Raises:
        SegdistillError: the workers failed more often than they are replaced, or a training of the same
            name is running.
    """
    late = _tracked_late(job)
    if late:
        print(  # noqa: T201 - a person watches it
            f"{job.name}: workers of the cluster at RAY_ADDRESS can't reach {job.tracking['uri']}; "
            "MLflow gets the curve when the training is done.",
            flush=True,
        )
    with _own_folder(job, runs) as folder:
        with _ray():
            _fit(replace(job, tracking={}) if late else job, folder)
        network, history = _result(job, folder)
    if late:
        from segdistill.training.tracking import Tracker

        tracker = Tracker(job.tracking)
        for row in history:
            tracker.log(row)
    return network, history


def _tracked_late(job: Job) -> bool:
    """Whether only this machine can reach the job's tracking address, and workers may be on others."""
    if not (job.tracking and os.environ.get("RAY_ADDRESS")):
        return False
    from segdistill.training.tracking import only_from_here

    return only_from_here(job.tracking["uri"])


def run_here(job: Job, runs: Path) -> "tuple[UNet, list[dict[str, Any]]]":
    """Train ``job`` in this process, without Ray: the same loop, for a debugger. See :func:`run`."""
    from segdistill.training.loop import train
    from segdistill.training.session import LocalSession

    with _own_folder(job, runs) as folder:
        train(job, LocalSession(folder))
        return _result(job, folder)


def _result(job: Job, folder: Path) -> "tuple[UNet, list[dict[str, Any]]]":
    from segdistill.training.loop import finished
    from segdistill.training.session import LocalSession

    checkpoint = LocalSession(folder).latest()
    if checkpoint is None:
        raise SegdistillError(f"{folder}: the training ended without a checkpoint. Start it again.")
    return finished(checkpoint, job)


@contextmanager
def _own_folder(job: Job, runs: Path) -> "Iterator[Path]":
    """The folder of the job's checkpoints, which nobody else uses or removes during the block.

    The system lets go of the lock when this process ends, however it ends.
    """
    own = runs.resolve() / job.name
    own.mkdir(parents=True, exist_ok=True)
    with (own / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SegdistillError(
                f"{own}: a training of this name is running. Wait until it ends, or stop it; then run "
                "the same command again."
            ) from error
        folder = own / replace(job, steps=0).digest()[:16]  # whatever its steps
        for stale in own.iterdir():
            if stale.is_dir() and stale != folder:
                shutil.rmtree(stale)
        folder.mkdir(exist_ok=True)
        yield folder
        for part in folder.iterdir():
            if part.is_dir() and part.name != KEPT:
                shutil.rmtree(part)
            elif part.is_file():
                part.unlink()
        if not (folder / KEPT).is_dir():
            folder.rmdir()


@contextmanager
def _ray() -> "Iterator[None]":
    """A Ray cluster: the one at RAY_ADDRESS, or one of this machine's own that ends with the block."""
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    import ray

    source = str(Path(__file__).resolve().parents[2])
    environment = {
        **_QUIET,
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
    }
    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": environment},
        "logging_level": logging.WARNING,
        "log_to_driver": False,  # without its dashboard, Ray's own actors warn about it without end
    }
    if address:
        ray.init(address=address, **common)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Unix sockets below this folder must have short names.
    folder = tempfile.mkdtemp(prefix="ray-", dir=tempfile.gettempdir())
    try:
        ray.init(
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            _temp_dir=folder,
            num_cpus=usable_cpus(),
            **common,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _fit(job: Job, folder: Path) -> None:
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig, RunConfig

    workers = job.training.workers
    resources = ray.cluster_resources()
    gpu = resources.get("GPU", 0) >= workers
    if resources.get("CPU", 0) < workers:
        raise SegdistillError(
            f"params.yaml: training.workers is {workers}, but Ray has "
            f"{resources.get('CPU', 0):g} CPUs. Lower it."
        )
    threads = max(1, int(resources["CPU"]) // workers)
    # The checkpoints are the session's own. Ray keeps records of a run, too, and half of one, as a power
    # cut leaves it, would stop every later run.
    storage = folder / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job.to_json(), "threads": threads, "folder": str(folder)},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": threads, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=_FAILURES),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": {} if gpu else CPU_ALLOCATOR},
        ),
    )
    try:
        with _shown(folder / PROGRESS):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise SegdistillError(_why(job, error)) from error


def _why(job: Job, error: Exception) -> str:
    """What a worker failed with: the last line of its traceback, which Ray hands on as text."""
    last = str(error).strip().splitlines()[-1].strip()
    own = re.match(r"segdistill\.[\w.]+: (.*)", last)
    return own[1] if own else f"{job.name}: the training failed for good: {last}"


@contextmanager
def _shown(progress: Path) -> "Iterator[None]":
    """Print what the workers add to their progress file, wherever they run, as they add it."""
    over = threading.Event()

    def follow() -> None:
        progress.touch()
        with progress.open() as stream:
            stream.seek(0, os.SEEK_END)
            while True:
                ending = over.wait(0.5)
                for line in stream:
                    print(line, end="", flush=True)  # noqa: T201 - a person watches it
                if ending:
                    return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()


def _worker(config: Mapping[str, Any]) -> None:
    import torch

    from segdistill.training.loop import train
    from segdistill.training.session import RaySession

    torch.set_num_threads(config["threads"])
    train(Job.from_json(config["job"]), RaySession(Path(config["folder"])))
