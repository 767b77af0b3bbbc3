"""Stage ``soft_labels``: the teacher's soft labels of every training case, once for all students."""

import argparse
import sys
from pathlib import Path

from pipelines.params import read_params, read_studies
from pipelines.stage import run_stage
from segdistill.files import atomic_folder, write_json
from segdistill.runtime.plan import Plan
from segdistill.training.index import any_rendered, any_unlabelled


def main() -> None:
    """Run the teacher over the training cases, if a student needs that; else leave the folder empty."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the teacher's model")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared cases")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    parser.add_argument("--study", type=Path, help="knobs of the studies: for the rows of the ablation")
    arguments = parser.parse_args()
    if not needed(arguments.params, arguments.study, arguments.data):
        with atomic_folder(arguments.out) as folder:
            write_json(folder / "index.json", {"teacher_sha256": None, "cases": 0})
        print(f"soft_labels: none, as no student learns from them, {arguments.out}")
        return
    # Seconds of imports, which nobody waits for where nothing is to do.
    from segdistill.network.model import read_model
    from segdistill.training.distillation.soft_labels import write_soft_labels

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


def needed(params: Path, study: Path | None, data: Path) -> bool:
    """Whether a student learns from stored soft labels: by a term of its loss, or for want of labels.

    Args:
        params: the task's knobs.
        study: those of the studies, whose rows are then asked about instead of the task's students.
        data: folder of prepared cases.
    """
    if any_unlabelled(data):
        return True
    if study is None:
        return read_params(params).distillation.needs_soft_labels
    taught = [row.teaching for row in read_studies(study).ablation.rows.values()]
    return any(own and own.needs_soft_labels for own in taught) and not any_rendered(data)


if __name__ == "__main__":
    run_stage(main)
