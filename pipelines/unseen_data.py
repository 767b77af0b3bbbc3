"""Stage ``unseen_data``: fetch the real scans that no training sees, and label their references."""

import argparse
from pathlib import Path

from pipelines.stage import run_stage
from segdistill.sites.unseen import make_unseen


def main() -> None:
    """Read the arguments and write the scans."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True, help="e.g. brain_mri")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    cases = make_unseen(arguments.task, arguments.out)
    for case in cases:
        print(f"unseen_data: {case.case}: {case.note}")
    if not cases:
        print(f"unseen_data: {arguments.task} has no real scan to check with")


if __name__ == "__main__":
    run_stage(main)
