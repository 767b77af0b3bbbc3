"""One setting, in a process of its own: ``python -m segdistill.tuning.measure``.

Its arguments are a bundle, a setting as JSON, a file for the label maps (.npz, in the scans' order) and
the scans. It prints one JSON line: median wall and CPU seconds a scan, from reading the file to having
the label map, and the process's peak memory.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from segdistill.files import SegdistillError
from segdistill.runtime.__main__ import peak_rss_mb
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import Segmentator
from segdistill.runtime.setting import Setting
from segdistill.volume import read_volume

ROUNDS = 2  # timed, after one that is not


def main(arguments: list[str]) -> int:
    """Segment every scan once untimed, then :data:`ROUNDS` times timed.

    Returns:
        The exit status: 0, or 2 after one line on standard error.
    """
    folder, setting, labels, *scans = arguments
    try:
        segmentator = Segmentator(
            Bundle.read(Path(folder)), setting=Setting.from_json(json.loads(setting), "setting")
        )
        found = [segmentator.segment(read_volume(Path(scan))).labels for scan in scans]
        walls, cpus = [], []
        for _ in range(ROUNDS):
            for scan in scans:
                wall, cpu = time.perf_counter(), time.process_time()
                segmentator.segment(read_volume(Path(scan)))
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
        peak = peak_rss_mb()
        np.savez(labels, *found)
    except (SegdistillError, OSError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 2
    line = {
        "seconds": round(statistics.median(walls), 5),
        "cpu_seconds": round(statistics.median(cpus), 5),
        "peak_rss_mb": round(peak, 1),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
