"""Stage ``anatomy``: fetch the task's pinned package and map its labels to the task's structures."""

import argparse
from pathlib import Path

from pipelines.stage import run_stage
from segdistill.simulation.anatomies import make_anatomy


def main() -> None:
    """Read the arguments and make the anatomy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", help="the task, e.g. brain_mri")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    voxels = make_anatomy(arguments.task, arguments.out)
    print(f"anatomy: {len(voxels)} structures, {sum(voxels.values()):,} voxels, {arguments.out}")


if __name__ == "__main__":
    run_stage(main)
