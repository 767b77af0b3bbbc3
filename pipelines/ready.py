"""Stage ``ready``: what the folder of an imported teacher holds, for trainings to depend on."""

import argparse
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import write_json
from segdistill.interop.ready_plan import ready_digests


def main() -> None:
    """Write the digests of its files; none where a teacher is trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="receipt to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    folder = read_params(arguments.params).teacher.folder
    write_json(arguments.out, ready_digests(folder) if folder else {})
    print(f"ready: {folder or 'no imported teacher, one is trained'}, {arguments.out}")


if __name__ == "__main__":
    run_stage(main)
