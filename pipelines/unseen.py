"""Stage ``unseen``: every bundle on the real scans that no training saw, as served."""

import argparse
import sys
from pathlib import Path

from pipelines.stage import run_stage
from segdistill.files import read_json


def main() -> None:
    """Check the family, or only print what the last check found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True, help="e.g. brain_mri")
    parser.add_argument("--bundles", type=Path, help="folder with a bundle per member")
    parser.add_argument("--data", type=Path, help="folder of the unseen scans")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--show", action="store_true", help="only print the last check's table")
    arguments = parser.parse_args()
    from segdistill.evaluation.unseen import check_unseen, in_words

    if arguments.show:
        body = read_json(arguments.out / "unseen.json")
    elif arguments.bundles and arguments.data:
        body = check_unseen(
            arguments.bundles,
            arguments.data,
            arguments.out,
            arguments.task,
            progress=lambda line: print(f"unseen: {line}", file=sys.stderr, flush=True),
        )
    else:
        parser.error("--bundles and --data are needed unless --show is given")
    print("\n".join(in_words(body)))


if __name__ == "__main__":
    run_stage(main)
