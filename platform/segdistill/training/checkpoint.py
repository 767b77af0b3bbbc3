"""A training's state between two steps, as safetensors and JSON: no pickle, here either."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from segdistill.files import read_json, write_json
from segdistill.network.unet import own_tensors

_STATE = "state.safetensors"
_PROGRESS = "progress.json"


def save(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    history: list[dict[str, Any]],
) -> None:
    """Write network, optimiser moments, step and history into ``folder``."""
    tensors = {f"network.{name}": value for name, value in own_tensors(network).items()}
    for number, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / _STATE
    )
    write_json(folder / _PROGRESS, {"step": step, "history": history})


def restore(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[int, list[dict[str, Any]]]:
    """Load what :func:`save` wrote; returns the step to go on with, and the history so far."""
    tensors = load_file(folder / _STATE)
    with torch.no_grad():
        for name, value in own_tensors(network).items():
            value.copy_(tensors[f"network.{name}"])
    if optimizer is not None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    progress = read_json(folder / _PROGRESS)
    return int(progress["step"]), list(progress["history"])
