"""Stage ``soft_labels``: the teacher's soft labels of every training case, once for all students."""

import argparse
import sys
from pathlib import Path

from pipelines.stage import run_stage
from segdistill.network.model import read_model
from segdistill.runtime.plan import Plan
from segdistill.training.distillation.soft_labels import write_soft_labels


def main() -> None:
    """Read the arguments and run the teacher over the training cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the teacher's model")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared cases")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    plan = Plan.read(arguments.plan)

    def progress(done: int, total: int) -> None:
        print(
            f"\rsoft_labels: {done}/{total} cases",
            end="\n" * (done == total),
            file=sys.stderr,
            flush=True,
        )

    teacher = read_model(arguments.teacher, plan)
    cases = write_soft_labels(teacher, plan, arguments.data, arguments.out, progress)
    megabytes = sum(path.stat().st_size for path in arguments.out.iterdir()) / 1e6
    print(f"soft_labels: {cases} cases in {megabytes:.0f} MB, {arguments.out}")


if __name__ == "__main__":
    run_stage(main)
