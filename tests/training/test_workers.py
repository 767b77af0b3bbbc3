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
from segdistill.training.session import LocalSession
from tests.training.toy import NETWORK, TRAINING, toy_job


class _GlooSession(LocalSession):
    """A worker of a bare torch.distributed group, which keeps its weights and what it was told."""

    workers = 2

    def __init__(self, rank: int, out: Path) -> None:
        super().__init__(out)
        self.device = torch.device("cpu")
        self.rank, self._out, self._told = rank, out, [0.0]

    def wrap(self, network: nn.Module) -> nn.Module:
        self._network = network
        return DistributedDataParallel(network)

    def from_first(self, value: float) -> float:
        self._told.append(super().from_first(value))
        return self._told[-1]

    def report(self, metrics: Mapping[str, Any], checkpoint: Path, *, keep: bool = False) -> None:
        assert isinstance(self._network, UNet)
        own = own_tensors(self._network) | {"told": torch.tensor(self._told)}
        torch.save(own, self._out / f"{self.rank}.pt")


def _worker(rank: int, job: dict[str, Any], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        train(Job.from_json(job), _GlooSession(rank, Path(folder)))
    finally:
        dist.destroy_process_group()


def test_workers_with_other_data_hold_the_same_weights(tmp_path: Path) -> None:
    """Two workers that draw different patches end with the same parameters: gradients are averaged.

    Both know what the first one's validations came to, so both end the constant phase at the same step.
    """
    knobs = replace(TRAINING, workers=2, validate_steps=2, patience=1, flat=1.0, decay_share=0.5)
    job = toy_job(tmp_path, steps=20, network=NETWORK, training=knobs)
    mp.spawn(_worker, (job.to_json(), str(tmp_path)), nprocs=2)
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(ours["told"]) == 1 + 4  # of 8 steps
    assert ours["told"].any()
