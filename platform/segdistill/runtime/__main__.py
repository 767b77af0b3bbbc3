"""``python -m segdistill.runtime BUNDLE IN OUT``: segment one file, print one JSON line."""

import argparse
import json
import sys
from pathlib import Path

from segdistill.files import SegdistillError
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import Segmentator


def main(arguments: list[str] | None = None) -> int:
    """Segment one scan.

    Returns:
        The exit status: 0, or 2 after one line on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m segdistill.runtime",
        description="Segment one scan on the CPU. Research use, not a medical device.",
    )
    parser.add_argument(
        "bundle", type=Path, help="folder of the bundle, e.g. bundles/brain_mri/student-x4"
    )
    parser.add_argument("scan", type=Path, help=".nii, .nii.gz, .mgz, or a folder with one DICOM series")
    parser.add_argument("labels", type=Path, help="label map to write, .nii or .nii.gz")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all that may be used")
    given = parser.parse_args(arguments)
    try:
        bundle = Bundle.read(given.bundle)
        outcome = Segmentator(bundle, given.threads).segment_file(given.scan, given.labels)
    except (SegdistillError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 2
    line = {
        "volumes_ml": {name: round(ml, 3) for name, ml in outcome.volumes_ml.items()},
        "quality": outcome.quality.to_json(),
        "timings": {step: {"wall_s": w, "cpu_s": c} for step, (w, c) in outcome.timings.items()},
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "bundle": bundle.digest,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux ru_maxrss starts at what the parent held when it started this process.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    sys.exit(main())
