"""Where the loop runs: in this process, or as one of Ray Train's workers. The loop can't tell."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from segdistill.files import atomic_folder
from segdistill.training.launch import KEPT, PROGRESS


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

    def kept(self) -> Path | None:
        """Folder of the checkpoint that an earlier run of this training kept, if there is one."""

    def from_first(self, value: float) -> float:
        """Worker 0's value, for all; every worker calls this."""

    def report(self, metrics: Mapping[str, Any], checkpoint: Path, *, keep: bool = False) -> None:
        """Hand in a checkpoint folder (only worker 0 fills it); every worker calls this.

        ``keep``: it stays when the run is over, for one with more steps to go on from.
        """


class LocalSession:
    """One process, no Ray: for debugging, and for tests of the loop itself.

    Args:
        folder: of the run, for its last checkpoint.
    """

    rank = 0
    workers = 1

    def __init__(self, folder: Path) -> None:
        self._checkpoint, self._kept = folder / "checkpoint", folder / KEPT
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wrap(self, network: nn.Module) -> nn.Module:
        """See :class:`Session`."""
        return network

    def latest(self) -> Path | None:
        """See :class:`Session`."""
        return self._checkpoint if self._checkpoint.is_dir() else None

    def kept(self) -> Path | None:
        """See :class:`Session`."""
        return self._kept if self._kept.is_dir() else None

    def from_first(self, value: float) -> float:
        """See :class:`Session`."""
        if self.workers == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)

    def say(self, line: str) -> None:
        """See :class:`Session`."""
        print(line, flush=True)  # noqa: T201 - progress is what a person watches a training for

    def report(self, metrics: Mapping[str, Any], checkpoint: Path, *, keep: bool = False) -> None:
        """See :class:`Session`."""
        for folder in (self._kept, self._checkpoint) if keep else (self._checkpoint,):
            with atomic_folder(folder) as partial:
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

    def report(self, metrics: Mapping[str, Any], checkpoint: Path, *, keep: bool = False) -> None:
        """See :class:`Session`."""
        import ray.train

        if self.rank == 0:
            super().report(metrics, checkpoint, keep=keep)
        ray.train.report(dict(metrics))  # and wait for one another
