from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdistill.network.unet import UNet, own_tensors
from segdistill.training.job import Job
from segdistill.training.loop import train
from tests.training.toy import NETWORK, TRAINING, toy_job


class _GlooSession:
    """A worker of a bare torch.distributed group, which keeps a sum of its weights."""

    workers = 2
    device = torch.device("cpu")

    def __init__(self, rank: int, out: Path) -> None:
        self.rank, self._out = rank, out

    def wrap(self, network: nn.Module) -> nn.Module:
        self._network = network
        return DistributedDataParallel(network)

    def latest(self) -> Path | None:
        return None

    def say(self, line: str) -> None:
        assert line

    def report(self, metrics: Mapping[str, Any], checkpoint: Path) -> None:
        assert isinstance(self._network, UNet)
        torch.save(own_tensors(self._network), self._out / f"{self.rank}.pt")


def _worker(rank: int, job: dict[str, Any], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        train(Job.from_json(job), _GlooSession(rank, Path(folder)))
    finally:
        dist.destroy_process_group()


def test_workers_with_other_data_hold_the_same_weights(tmp_path: Path) -> None:
    """Two workers that draw different patches end with the same parameters: gradients are averaged."""
    job = toy_job(
        tmp_path, steps=4, network=NETWORK, training=replace(TRAINING, workers=2, checkpoint_steps=4)
    )
    mp.spawn(_worker, (job.to_json(), str(tmp_path)), nprocs=2)
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
