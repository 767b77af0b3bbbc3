"""How a benchmark talks to the process of one pipeline; standard library alone, for nnU-Net's Python.

The process loads its model once and says ``{"ready": ...}``. For every line
``{"scan": ..., "labels": ...}`` it segments a scan and answers with its costs. All that pipelines print
goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def answer(segment: Callable[[str, str], dict[str, Any] | None]) -> None:
    """Segment what standard input names until it ends; one line of JSON each on standard output."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=stream, flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        wall, before = time.perf_counter(), os.times()
        steps = segment(wanted["scan"], wanted["labels"])
        after = os.times()
        costs = {
            "seconds": time.perf_counter() - wall,
            # of this process and of those that it started and that have ended
            "cpu_seconds": sum(after[:4]) - sum(before[:4]),
            "peak_rss_mb": peak_rss_mb(),
            "steps": steps,
        }
        print(json.dumps(costs), file=stream, flush=True)


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM")
