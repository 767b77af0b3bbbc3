"""Weights that aren't numbers are refused wherever a network comes in or goes out."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from segdistill.files import SegdistillError, sha256_of
from segdistill.network.architecture import Architecture
from segdistill.network.export import export_onnx
from segdistill.network.finite import require_finite, require_finite_onnx
from segdistill.network.model import MODEL_JSON, WEIGHTS, read_model, write_model
from segdistill.network.quantise import quantise
from segdistill.network.unet import UNet, own_tensors
from tests.onnx_models import make_plan, threshold_model

BAD = [float("nan"), float("inf"), float("-inf")]
PLAN = make_plan(2, patch_size=(8, 8, 8), size_divisor=(4, 4, 4))


def network() -> UNet:
    """A small network with batch norm."""
    torch.manual_seed(0)
    return UNet(Architecture((4, 6, 8), 1, 3, 1, "batch", 1)).eval()


def spoilt(made: UNet, part: str, value: float) -> str:
    """Put a value into the first tensor whose name holds ``part``; returns its name."""
    name = next(name for name in own_tensors(made) if part in name)
    with torch.no_grad():
        own_tensors(made)[name].view(-1)[0] = value
    return name


def write(folder: Path, made: UNet) -> None:
    """Write a network as a model."""
    write_model(folder, made, PLAN, name="a", role="teacher", width=1.0, training={})


@pytest.mark.parametrize("value", BAD)
def test_a_tensor_that_is_not_finite_is_named(value: float) -> None:
    """The message has the source, the tensor's name and how many of its values are wrong."""
    tensors = {"good": torch.ones(3), "bad": torch.tensor([0.0, value, value])}
    with pytest.raises(SegdistillError, match=r"model\.pth: 2 of the 3 values of bad are NaN"):
        require_finite(tensors, "model.pth")
    require_finite({"good": torch.ones(3).half(), "count": torch.tensor(3), "none": torch.ones(0)}, "")


@pytest.mark.parametrize("part", ["conv.weight", "running_var"])
@pytest.mark.parametrize("value", BAD)
def test_a_network_that_is_not_finite_is_neither_written_nor_exported(
    tmp_path: Path, part: str, value: float
) -> None:
    """No model folder and no ONNX file is made of it, be it a weight or what batch norm averaged."""
    made = network()
    name = spoilt(made, part, value)
    with pytest.raises(SegdistillError, match=re.escape(name)):
        write(tmp_path / "a", made)
    with pytest.raises(SegdistillError, match=re.escape(name)):
        export_onnx(made, PLAN, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_finite_is_not_read(tmp_path: Path) -> None:
    """A model folder with a NaN is refused even if its digest is right, as of another writer."""
    write(tmp_path / "a", network())
    weights, card = tmp_path / "a" / WEIGHTS, tmp_path / "a" / MODEL_JSON
    tensors = load_file(weights)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, weights)
    card.write_text(json.dumps(json.loads(card.read_text()) | {"weights_sha256": sha256_of(weights)}))
    with pytest.raises(SegdistillError, match=re.escape(name)):
        read_model(tmp_path / "a", PLAN)


def test_an_onnx_file_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """A NaN among the stored tensors of an ONNX file is found, and a good file passes."""
    path = threshold_model(tmp_path / "model.onnx", [1.0, 2.0])
    require_finite_onnx(path, path)
    body = onnx.load(path)
    body.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32([0, np.nan, 1]), "bias"))
    onnx.save(body, path)
    with pytest.raises(SegdistillError, match=r"model\.onnx: 1 of the 3 values of bias"):
        require_finite_onnx(path, path)


def test_scales_that_are_not_finite_are_not_quantised_with(tmp_path: Path) -> None:
    """A calibration case with an infinity in it makes no int8 network."""
    path = tmp_path / "model.onnx"
    export_onnx(network(), PLAN, path)
    image = np.ones((1, 8, 8, 8), np.float32)
    image[0, 4, 4, 4] = np.inf
    with pytest.raises(SegdistillError, match="NaN or infinite voxels"):
        quantise(path, PLAN, [image], tmp_path / "model.int8.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
