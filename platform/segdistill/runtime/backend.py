"""What runs the network: one interface, and ONNX Runtime or OpenVINO on the CPU behind it."""

import os
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.runtime.cpus import usable_cpus
from segdistill.runtime.setting import Precision, has_openvino

INPUT = "scan"
OUTPUT = "logits"

# An input of so many voxels gets a network compiled for its very size. Its memory is then planned as a
# whole, and less. Below, the tenths of a second that compiling takes would be felt.
FIXED_VOXELS = 2**22


# Scores, float32; or uint16 that are the bits of bfloat16, which NumPy doesn't have. See as_float32.
Logits = NDArray[np.float32] | NDArray[np.uint16]


class EngineError(SegdistillError):
    """The engine couldn't prepare or run the network, mostly for want of memory; another try may do."""


class Backend(Protocol):
    """Runs a network: (1, 1, X, Y, Z) float32 to (1, K, X, Y, Z) logits."""

    def __call__(self, x: NDArray[np.float32]) -> Logits:
        """Logits of a window; X, Y and Z are multiples of the plan's ``size_divisor``.

        The caller may change them, and has them until its thread's next call.
        """
        ...


def as_float32(logits: Logits) -> NDArray[np.float32]:
    """Logits in float32; exact, bfloat16 is its upper half."""
    if logits.dtype != np.uint16:
        return logits  # type: ignore[return-value]
    bits = logits.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


class OnnxBackend:
    """ONNX Runtime on the CPU. Calls are safe from several threads at once."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Load a network.

        Args:
            path: an ONNX file with input ``scan`` (1, 1, X, Y, Z) and output ``logits``
                (1, K, X, Y, Z), both float32.
            threads: CPU threads, at most one per CPU of the machine; 0 takes :func:`usable_cpus`.

        Raises:
            SegdistillError: missing, not an ONNX model, or other inputs and outputs.
        """
        if hasattr(ort, "disable_telemetry_events"):
            ort.disable_telemetry_events()
        _must_exist(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = _threads(threads)
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
            raise _unfit(path, found)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (1, K, X, Y, Z) of ``x`` (1, 1, X, Y, Z).

        Raises:
            EngineError: it fails.
        """
        try:
            logits: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: x})[0]
        except Exception as error:  # as above
            raise _failed("run", x.shape, error) from error
        return logits


class OpenVinoBackend:
    """OpenVINO on the CPU. Calls are safe from several threads at once."""

    def __init__(self, path: Path, threads: int = 0, precision: Precision = "f32") -> None:
        """Load and compile a network.

        Args:
            path: as of :class:`OnnxBackend`; for ``int8``, the quantised one.
            threads: CPU threads, at most one per CPU of the machine; 0 takes :func:`usable_cpus`.
            precision: ``bf16`` needs a processor that has it. What an ``int8`` network doesn't quantise
                runs in float32.

        Raises:
            SegdistillError: OpenVINO isn't installed, the processor lacks the precision, or the file is
                missing or unfit.
        """
        if not has_openvino():
            raise SegdistillError("OpenVINO isn't installed: pip install openvino, or tune without it.")
        # Its usage reports are not even loaded: where they can't be imported, OpenVINO does without.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino  # a second to load, and not everybody serves with it

        _must_exist(path)
        self._core = openvino.Core()
        capable = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in capable:
            raise SegdistillError("this processor has no bf16. Take f32, or tune on this machine.")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": _threads(threads),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # two services must not share the first cores
        }
        try:
            self._model = self._core.read_model(str(path))
            if precision == "bf16":  # as the last layer gives them: half the memory, the same values
                ends = openvino.preprocess.PrePostProcessor(self._model)
                ends.output(0).tensor().set_element_type(openvino.Type.bf16)
                self._model = ends.build()
            self._network = self._core.compile_model(self._model, "CPU", self._settings)
        except Exception as error:  # OpenVINO's errors are plain RuntimeErrors and others
            raise SegdistillError(
                f"{path}: not a network that OpenVINO can run ({str(error).strip()[-200:]}). "
                "Export the bundle again."
            ) from error
        ports = (*self._network.inputs, *self._network.outputs)
        found = [
            (port.any_name, port.element_type.get_type_name(), len(port.partial_shape)) for port in ports
        ]
        given = "bf16" if precision == "bf16" else "f32"
        if found != [(INPUT, "f32", 5), (OUTPUT, given, 5)]:
            raise _unfit(path, found)
        self._shape: tuple[int, ...] | None = None  # that the network is compiled for; None: any
        self._compiling = threading.Lock()
        self._own = threading.local()  # the network's requests, one per calling thread

    def __call__(self, x: NDArray[np.float32]) -> Logits:
        """Logits (1, K, X, Y, Z) of ``x`` (1, 1, X, Y, Z); in ``bf16`` as uint16.

        Raises:
            EngineError: it fails, or can't be compiled for a large ``x`` (:data:`FIXED_VOXELS`); what
                was compiled before is kept.
        """
        network, own = self._compiled_for(x.shape if x.size >= FIXED_VOXELS else None)
        try:
            if not hasattr(own, "request"):
                own.request = network.create_infer_request()
            found = own.request.infer({0: x}, share_inputs=True, share_outputs=True)
        except Exception as error:  # as above
            raise _failed("run", x.shape, error) from error
        logits: NDArray[np.float32] = found[0]
        if logits.itemsize == 2:  # OpenVINO calls them float16
            return logits.view(np.uint16)
        return logits

    def _compiled_for(self, shape: tuple[int, ...] | None) -> tuple[Any, threading.local]:
        """A network that is compiled for the shape, and the ``request`` that each thread has of it."""
        with self._compiling:
            if shape != self._shape:
                # The network of before stays until this one is there. The requests go with it.
                network = self._compile(shape)
                self._network, self._shape, self._own = network, shape, threading.local()
            return self._network, self._own

    def _compile(self, shape: tuple[int, ...] | None) -> Any:
        """The network for inputs of one shape, or of any.

        Raises:
            EngineError: OpenVINO can't, mostly for want of memory.
        """
        model = self._model.clone()
        try:
            if shape is not None:
                model.reshape(shape)
                _sum_instead_of_concatenating(model)
            return self._core.compile_model(model, "CPU", self._settings)
        except Exception as error:  # as above
            raise _failed("prepare", shape, error) from error


def _sum_instead_of_concatenating(model: Any) -> None:
    """Convolve two tensors and add, where one convolution takes both as one: that one is never made.

    In a U-Net's finest level it is the largest tensor of all. Exact but for rounding. What is quantised
    is left as it is: those convolutions take what was put together and then quantised.

    Args:
        model: ``openvino.Model`` of a fixed shape, changed in place.
    """
    import openvino.opset13 as ops  # as openvino above

    for joined in model.get_ordered_ops():
        if joined.get_type_name() != "Concat" or joined.get_input_size() != 2:
            continue
        users = joined.output(0).get_target_inputs()
        convolution = next(iter(users)).get_node()
        if len(users) > 1 or convolution.get_type_name() != "Convolution":
            continue
        weights, knobs = convolution.input_value(1).get_node(), convolution.get_attributes()
        if weights.get_type_name() != "Constant" or knobs["auto_pad"] != "explicit":
            continue
        if joined.get_attributes()["axis"] != 1:
            continue
        parts = [
            ops.convolution(
                joined.input_value(index),
                ops.constant(np.ascontiguousarray(part)),
                knobs["strides"],
                knobs["pads_begin"],
                knobs["pads_end"],
                knobs["dilations"],
            )
            for index, part in enumerate(
                np.split(weights.data, [joined.input(0).get_shape()[1]], axis=1)
            )
        ]
        both = ops.add(*parts)
        for user in convolution.output(0).get_target_inputs():
            user.replace_source_output(both.output(0))


def _threads(wanted: int) -> int:
    # More than the machine has CPUs only wait for each other: with thousands, a scan never ends.
    return min(wanted, os.cpu_count() or wanted) if wanted > 0 else usable_cpus()


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise SegdistillError(f"{path}: no such file. Fetch the bundle from the registry again.")


def _failed(what: str, shape: tuple[int, ...] | None, error: Exception) -> EngineError:
    size = " x ".join(map(str, shape[2:])) if shape else "any number of"
    return EngineError(
        f"the engine can't {what} the network for {size} voxels ({str(error).strip()[-200:]}). "
        "Free some memory, or crop the scan to the part that matters."
    )


def _unfit(path: Path, found: object) -> SegdistillError:
    return SegdistillError(
        f"{path}: needs float32 input '{INPUT}' and output '{OUTPUT}' with five axes, has "
        f"{found}. Export the bundle again."
    )
