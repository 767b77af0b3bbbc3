"""Post-training quantisation of an exported network to int8, calibrated on training cases."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from segdistill.files import SegdistillError, atomic_path
from segdistill.network.finite import require_finite_onnx
from segdistill.runtime.backend import INPUT
from segdistill.runtime.plan import Plan

# The layers that make the logits stay in float32: a logit's last bits decide between two classes.
_HEAD = "/output_block/"


def quantise(
    source: Path, plan: Plan, images: Iterable[NDArray[np.floating[Any]]], target: Path
) -> None:
    """Write ``source`` with its convolutions in int8, weights by channel, as ``target``.

    ONNX Runtime's static quantisation, QDQ format, which OpenVINO runs as well. The range of every
    activation is what the calibration windows show. Normalisations and the head stay in float32.

    Args:
        source: an ONNX file from :func:`~segdistill.network.export.export_onnx`.
        plan: the family's plan.
        images: (1, X, Y, Z) each, cases of the training split on the plan's grid; of each, the window in
            its middle is taken, or all of it if the plan's mode is ``whole``.
        target: the file to write; whole or absent.

    Raises:
        SegdistillError: there are no images, or a voxel, weight or scale isn't finite.
    """
    whole = plan.mode == "whole"
    windows = [
        _middle(image, plan.divisible(image.shape[1:]) if whole else plan.patch_size) for image in images
    ]
    if not windows:
        raise SegdistillError(f"{target}: no training case to calibrate int8 with. Prepare some.")
    if not all(np.isfinite(window).all() for window in windows):
        raise SegdistillError(f"{target}: a training case has NaN or infinite voxels. Prepare it anew.")
    head = [node.name for node in onnx.load(source).graph.node if _HEAD in node.name]
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # its advice is about graphs with fixed sizes
    try:
        with atomic_path(target) as partial:
            quantize_static(
                str(source),
                str(partial),
                _Windows(windows),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "ConvTranspose"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=head,
                calibrate_method=CalibrationMethod.MinMax,
            )
            require_finite_onnx(partial, target)
    finally:
        logging.getLogger().setLevel(level)


class _Windows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, windows: list[NDArray[np.float32]]) -> None:
        self._left: Iterator[NDArray[np.float32]] = iter(windows)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        window = next(self._left, None)
        return None if window is None else {INPUT: window}


def _middle(image: NDArray[np.floating[Any]], size: tuple[int, int, int]) -> NDArray[np.float32]:
    """(1, 1, x, y, z) float32: the window in the middle, grown by its outermost voxels if need be."""
    missing = [max(0, want - have) for want, have in zip(size, image.shape[1:], strict=True)]
    grown = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)], mode="edge")
    begin = [(have - want) // 2 for want, have in zip(size, grown.shape[1:], strict=True)]
    where = tuple(slice(first, first + want) for first, want in zip(begin, size, strict=True))
    return np.ascontiguousarray(grown[(slice(None), *where)][None], dtype=np.float32)
