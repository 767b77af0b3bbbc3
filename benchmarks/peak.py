"""How many operations a second the network reaches, and how many this machine can do at all."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from segdistill.runtime.backend import INPUT, OUTPUT, OpenVinoBackend
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import open_backend
from segdistill.runtime.setting import Precision, Setting

_SIDE = 2048  # of the matrices of a product
_LAYERS = 6


def machine_peak(precision: Precision, threads: int) -> float:
    """Operations a second of large matrix products in OpenVINO, two per multiply-accumulate."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "products.onnx"
        _products(path)
        if precision == "int8":
            quantize_static(
                str(path), str(Path(name) / "int8.onnx"), _Sample(), quant_format=QuantFormat.QDQ
            )
            path = Path(name) / "int8.onnx"
        seconds = _median(OpenVinoBackend(path, threads, precision), (1, 1, 1, _SIDE, _SIDE))
    return 2.0 * _LAYERS * _SIDE**3 / seconds


def reached(bundle: Bundle, precision: Precision, threads: int) -> dict[str, Any]:
    """Seconds of one window through OpenVINO, and the operations a second that this is."""
    setting = Setting("openvino", precision, "windows", bundle.plan.overlap, threads)
    seconds = _median(open_backend(bundle, setting), (1, 1, *bundle.plan.patch_size))
    operations = 2 * bundle.provenance["macs"]
    return {"seconds": round(seconds, 5), "operations_per_second": round(operations / seconds)}


def _median(backend: Any, shape: tuple[int, ...]) -> float:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    backend(x)
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        backend(x)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def _products(path: Path) -> None:
    random = np.random.default_rng(0)
    names = [INPUT, *(f"product{layer}" for layer in range(1, _LAYERS)), OUTPUT]
    weights = [
        numpy_helper.from_array(
            (random.standard_normal((_SIDE, _SIDE)) / _SIDE**0.5).astype(np.float32), f"weight{layer}"
        )
        for layer in range(_LAYERS)
    ]
    nodes = [
        helper.make_node("MatMul", [names[layer], f"weight{layer}"], [names[layer + 1]])
        for layer in range(_LAYERS)
    ]
    shape = [1, 1, 1, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


class _Sample(CalibrationDataReader):  # type: ignore[misc]
    """One random input."""

    def __init__(self) -> None:
        self._left = 1

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        if not self._left:
            return None
        self._left = 0
        random = np.random.default_rng(1)
        return {INPUT: random.standard_normal((1, 1, 1, _SIDE, _SIDE)).astype(np.float32)}
