"""Stage ``ready``: what the folders of models from outside hold, for trainings to depend on."""

import argparse
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import SegdistillError, digests_of, write_json
from segdistill.interop.ready_plan import ready_digests


def main() -> None:
    """Write the digests of their files; none where the teacher is trained from random numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="receipt of teacher.ready, to write")
    parser.add_argument("--start", type=Path, required=True, help="receipt of teacher.start, to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    teacher = read_params(arguments.params).teacher
    write_json(arguments.out, ready_digests(teacher.folder) if teacher.folder else {})
    write_json(arguments.start, _start_digests(Path(teacher.start)) if teacher.start else {})
    trained = f"one is trained from {teacher.start or 'random numbers'}"
    print(f"ready: {teacher.folder or f'no imported teacher, {trained}'}, {arguments.out}")


def _start_digests(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise SegdistillError(
            f"{folder}: no such folder, though teacher.start in params.yaml names it. Name the folder "
            "of a trained model, which holds model.json and model.safetensors, or set it to null."
        )
    return digests_of(folder)


if __name__ == "__main__":
    run_stage(main)
