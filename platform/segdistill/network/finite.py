"""Weights that aren't numbers are refused, wherever a network comes in or goes out.

One NaN makes all logits NaN, and the best class of NaN is background: an empty label map without a word.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from segdistill.files import SegdistillError

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def require_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse tensors with a NaN or an infinity in them.

    Args:
        tensors: by name.
        source: the file or the training they come from, for the message.

    Raises:
        SegdistillError: the first such tensor, by name.
    """
    for name, value in tensors.items():
        wrong = value.numel() - int(torch.isfinite(value).sum())
        if wrong:
            raise SegdistillError(
                f"{source}: {wrong} of the {value.numel()} values of {name} are NaN or infinite, so the "
                "network can't be used. Take another checkpoint, or train it again."
            )


def require_finite_onnx(path: Path, source: str | Path) -> None:
    """As :func:`require_finite`, for the stored weights and scales of an ONNX file."""
    stored = onnx.load(path).graph.initializer
    require_finite(
        {
            tensor.name: torch.tensor(numpy_helper.to_array(tensor))
            for tensor in stored
            if tensor.data_type in _FLOATS
        },
        source,
    )
