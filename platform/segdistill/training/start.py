"""A training's start from the weights of a trained model, instead of random numbers."""

from pathlib import Path

import torch

from segdistill.files import SegdistillError
from segdistill.network.model import MODEL_JSON, read_any_model
from segdistill.network.unet import UNet, own_tensors


def start_from(folder: Path, network: UNet) -> None:
    """Copy a model's weights into a network of the same architecture.

    Its plan may be another one: intensities and voxel sizes are what the training then gets used to.
    What its outputs mean is not written in a model's folder; the structures must be the same in the same
    order.

    Raises:
        SegdistillError: a file is missing or altered, or the architecture is another one.
    """
    model = read_any_model(folder)
    ours, theirs = network.architecture.to_json(), model.network.architecture.to_json()
    if other := [
        f"{key} {theirs.get(key)} (here {value})"
        for key, value in ours.items()
        if theirs.get(key) != value
    ]:
        raise SegdistillError(
            f"{folder / MODEL_JSON}: the model to start from has another architecture: "
            f"{', '.join(other)}. Set network in params.yaml as it was when that model was trained, or "
            "teacher.start to null."
        )
    with torch.no_grad():
        for name, value in own_tensors(model.network).items():
            own_tensors(network)[name].copy_(value)
