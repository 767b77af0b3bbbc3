"""What runs the network: one interface, and ONNX Runtime on the CPU behind it."""

from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.runtime.cpus import usable_cpus

INPUT = "scan"
OUTPUT = "logits"


class Backend(Protocol):
    """Runs a network: (1, 1, X, Y, Z) float32 to (1, K, X, Y, Z) float32 logits."""

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a window; X, Y and Z are multiples of the plan's ``size_divisor``."""
        ...


class OnnxBackend:
    """ONNX Runtime on the CPU. Calls are safe from several threads at once."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Load a network.

        Args:
            path: an ONNX file with input ``scan`` (1, 1, X, Y, Z) and output ``logits``
                (1, K, X, Y, Z), both float32.
            threads: CPU threads; 0 takes :func:`usable_cpus`.

        Raises:
            SegdistillError: missing, not an ONNX model, or other inputs and outputs.
        """
        if hasattr(ort, "disable_telemetry_events"):
            ort.disable_telemetry_events()
        if not path.is_file():
            raise SegdistillError(f"{path}: no such file. Fetch the bundle from the registry again.")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads sleep instead of spinning: a busy hospital server needs those cycles.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            raise SegdistillError(
                f"{path}: not a usable ONNX model ({error}). Export the bundle again."
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(value.name, value.type, len(value.shape)) for value in (*inputs, *outputs)]
        if found != [(INPUT, "tensor(float)", 5), (OUTPUT, "tensor(float)", 5)]:
            raise SegdistillError(
                f"{path}: needs float32 input '{INPUT}' and output '{OUTPUT}' with five axes, has "
                f"{found}. Export the bundle again."
            )

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (1, K, X, Y, Z) of ``x`` (1, 1, X, Y, Z)."""
        logits: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: x})[0]
        return logits
