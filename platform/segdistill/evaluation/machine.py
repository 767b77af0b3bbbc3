"""The machine that figures were measured on, without naming the host."""

import platform
from importlib import metadata

import psutil

from segdistill.runtime.cpus import usable_cpus
from segdistill.runtime.setting import processor


def describe_machine() -> dict[str, str | int | float]:
    """Processor, usable cores, memory in GiB and versions of what runs the networks."""
    return {
        "cpu": str(processor()["name"]),
        "cores": usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": metadata.version("onnxruntime"),
        "monai": metadata.version("monai"),
    }
