"""``python -m segdistill.tuning BUNDLE TUNING SCAN...``: measure a bundle on a machine's own scans.

It writes ``TUNING``, a JSON file that the service reads.
"""

import argparse
import json
import sys
from pathlib import Path

from segdistill.files import SegdistillError, write_json
from segdistill.tuning.search import TuningCase, tune


def main(arguments: list[str] | None = None) -> int:
    """Tune a bundle on this machine.

    Returns:
        The exit status: 0, or 2 after one line on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m segdistill.tuning",
        description="Measure how a bundle runs fastest on this machine without losing Dice.",
    )
    parser.add_argument(
        "bundle", type=Path, help="folder of the bundle, e.g. bundles/brain_mri/student-x4"
    )
    parser.add_argument("tuning", type=Path, help="JSON file to write")
    parser.add_argument("scan", type=Path, nargs="+", help="scans of the kind that will be segmented")
    parser.add_argument(
        "--overlap", type=float, nargs="*", default=[0.25, 0.4], help="of windows, to try"
    )
    given = parser.parse_args(arguments)
    try:
        tuning = tune(
            given.bundle,
            [TuningCase(scan) for scan in given.scan],
            overlaps=given.overlap,
            progress=_say,
        )
        write_json(given.tuning, tuning)
        sys.stdout.write(json.dumps(tuning["choice"]) + "\n")
    except (SegdistillError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 2
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
