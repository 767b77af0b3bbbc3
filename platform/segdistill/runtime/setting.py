"""How a bundle is run: backend, precision, windows or the whole volume, threads."""

import importlib.util
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from segdistill.files import SegdistillError
from segdistill.runtime.plan import Mode, Plan

BackendName = Literal["onnxruntime", "openvino"]
Precision = Literal["f32", "bf16", "int8"]

#: What of a processor decides how fast and how exactly a network runs on it.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Setting:
    """One way to run a network. The reference is what the family was trained and evaluated with.

    Attributes:
        backend: ``onnxruntime`` or ``openvino``.
        precision: of the network's arithmetic: ``f32``; ``bf16``, on processors that have it; or
            ``int8``, with the network that was quantised when it was exported.
        mode: ``windows`` or ``whole``, see :class:`~segdistill.runtime.plan.Plan`.
        overlap: share of a window that the next one covers, in [0, 1).
        threads: CPU threads of the network; 0: as many as the process may use.
    """

    backend: BackendName
    precision: Precision
    mode: Mode
    overlap: float
    threads: int

    @classmethod
    def reference(cls, plan: Plan, threads: int = 0) -> "Setting":
        """ONNX Runtime in float32, in the plan's own mode and overlap."""
        return cls("onnxruntime", "f32", plan.mode, plan.overlap, threads)

    @classmethod
    def from_json(cls, body: Any, source: str) -> "Setting":
        """Read a setting back; ``source`` names it in errors.

        Raises:
            SegdistillError: not a setting.
        """
        try:
            setting = cls(**body)
        except TypeError as error:
            raise SegdistillError(f"{source}: not a setting ({error}). Tune again.") from error
        wrong = (
            setting.backend not in get_args(BackendName)
            or setting.precision not in get_args(Precision)
            or setting.mode not in get_args(Mode)
            or not 0 <= setting.overlap < 1
            or setting.threads < 0
        )
        if wrong:
            raise SegdistillError(f"{source}: {body} is not a setting. Tune again.")
        return setting

    def to_json(self) -> dict[str, Any]:
        """The setting as plain JSON values."""
        return asdict(self)

    def applied_to(self, plan: Plan) -> Plan:
        """The plan with this setting's mode and overlap."""
        return replace(plan, mode=self.mode, overlap=self.overlap)

    def __str__(self) -> str:
        """For people: ``openvino bf16, windows overlapping by 0.5, all threads``."""
        how = "whole volume" if self.mode == "whole" else f"windows overlapping by {self.overlap:g}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else "all threads"
        return f"{self.backend} {self.precision}, {how}, {threads}"


def has_openvino() -> bool:
    """Whether OpenVINO is installed; it is not loaded for the answer."""
    return importlib.util.find_spec("openvino") is not None


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The processor's name and which of :data:`FEATURES` it has."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:  # one paragraph per core, all alike
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    return {
        "name": facts.get("model name") or platform.processor() or platform.machine(),
        "features": [feature for feature in FEATURES if feature in flags],
    }
