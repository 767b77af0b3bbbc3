"""Where the loop runs: in this process, or as one of Ray Train's workers. The loop can't tell."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from segdistill.files import atomic_folder
from segdistill.training.launch import PROGRESS


class Session(Protocol):
    """What the loop asks of its surroundings."""

    rank: int
    workers: int
    device: torch.device

    def wrap(self, network: nn.Module) -> nn.Module:
        """With several workers, the network with its gradients synchronised; else the network."""

    def latest(self) -> Path | None:
        """Folder of the last checkpoint of this run, if there is one."""

    def say(self, line: str) -> None:
        """Show a line of progress to whoever started the training."""

    def report(self, metrics: Mapping[str, Any], checkpoint: Path) -> None:
        """Hand in a checkpoint folder (only worker 0 fills it); every worker calls this."""


class LocalSession:
    """One process, no Ray: for debugging, and for tests of the loop itself.

    Args:
        folder: of the run, for its last checkpoint.
    """

    rank = 0
    workers = 1

    def __init__(self, folder: Path) -> None:
        self._checkpoint = folder / "checkpoint"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wrap(self, network: nn.Module) -> nn.Module:
        """See :class:`Session`."""
        return network

    def latest(self) -> Path | None:
        """See :class:`Session`."""
        return self._checkpoint if self._checkpoint.is_dir() else None

    def say(self, line: str) -> None:
        """See :class:`Session`."""
        print(line, flush=True)  # noqa: T201 - progress is what a person watches a training for

    def report(self, metrics: Mapping[str, Any], checkpoint: Path) -> None:
        """See :class:`Session`."""
        with atomic_folder(self._checkpoint) as partial:
            shutil.copytree(checkpoint, partial, dirs_exist_ok=True)


class RaySession(LocalSession):
    """One of Ray Train's workers.

    Args:
        folder: of the run, on storage that every worker sees.
    """

    def __init__(self, folder: Path) -> None:
        import ray.train
        from ray.train.torch import get_device

        super().__init__(folder)
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.workers = context.get_world_size()
        self.device = get_device()
        self._progress = folder / PROGRESS

    def wrap(self, network: nn.Module) -> nn.Module:
        """See :class:`Session`."""
        from ray.train.torch import prepare_model

        return prepare_model(network)  # type: ignore[no-any-return]

    def say(self, line: str) -> None:
        """See :class:`Session`."""
        with self._progress.open("a") as stream:
            stream.write(line + "\n")

    def report(self, metrics: Mapping[str, Any], checkpoint: Path) -> None:
        """See :class:`Session`."""
        import ray.train

        if self.rank == 0:
            super().report(metrics, checkpoint)
        ray.train.report(dict(metrics))  # and wait for one another
