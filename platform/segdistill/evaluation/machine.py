"""The machine that figures were measured on, without naming the host."""

import platform
from importlib import metadata
from pathlib import Path

import psutil

from segdistill.runtime.cpus import usable_cpus


def describe_machine() -> dict[str, str | int | float]:
    """Processor, usable cores, memory in GiB and versions of what runs the networks."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": metadata.version("onnxruntime"),
        "monai": metadata.version("monai"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
