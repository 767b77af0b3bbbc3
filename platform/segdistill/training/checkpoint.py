"""A training's state between two steps, as safetensors and JSON: no pickle, here either."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from segdistill.files import read_json, write_json
from segdistill.network.unet import own_tensors

_STATE = "state.safetensors"
_PROGRESS = "progress.json"
_TRAINED, _AVERAGE = "trained.", "average."


@dataclass(frozen=True)
class State:
    """All that a training changes.

    Attributes:
        trained: what the optimiser trains: the network, under that name, and what else learns with it.
        optimizer: its moments.
        average: the moving average of the network's weights, which is then what comes out; or None.
    """

    trained: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None


def save(folder: Path, state: State, step: int, steps: int, history: list[dict[str, Any]]) -> None:
    """Write weights, optimiser moments, step (of at most ``steps``) and history into ``folder``."""
    tensors = {_TRAINED + name: value for name, value in own_tensors(state.trained).items()}
    if state.average is not None:
        tensors |= {_AVERAGE + name: value for name, value in own_tensors(state.average).items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / _STATE
    )
    write_json(folder / _PROGRESS, {"step": step, "steps": steps, "history": history})


def restore(folder: Path, state: State) -> tuple[int, list[dict[str, Any]]]:
    """Load what :func:`save` wrote; returns the step to go on with, and the history so far."""
    tensors = load_file(folder / _STATE)
    _load(state.trained, tensors, _TRAINED)
    if state.average is not None:
        _load(state.average, tensors, _AVERAGE)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            moments.setdefault(int(number), {})[key] = value
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    step, _, history = progress(folder)
    return step, history


def restore_result(folder: Path, network: nn.Module) -> tuple[int, list[dict[str, Any]]]:
    """Load only the network that came out; returns the step it is of, and the history."""
    tensors = load_file(folder / _STATE)
    averaged = any(name.startswith(_AVERAGE) for name in tensors)
    _load(network, tensors, f"{_AVERAGE}module." if averaged else f"{_TRAINED}network.")
    step, _, history = progress(folder)
    return step, history


def _load(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    with torch.no_grad():
        for name, value in own_tensors(module).items():
            value.copy_(tensors[prefix + name])


def progress(folder: Path) -> tuple[int, int, list[dict[str, Any]]]:
    """How far a training has come: the step, the most that it was to take, and the history."""
    body = read_json(folder / _PROGRESS)
    return int(body["step"]), int(body["steps"]), list(body["history"])
