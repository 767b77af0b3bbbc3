"""Stage ``register``: every bundle that isn't in the registry yet, with its figures and its card."""

import argparse
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import write_json
from segdistill.registry.register import model_name, register_family


def main() -> None:
    """Register the family and write which version each member is; no times, so it is the same again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root")
    parser.add_argument("--out", type=Path, required=True, help="receipt to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    task = read_params(arguments.root / arguments.params).task
    done = register_family(arguments.root, task)
    write_json(
        arguments.out,
        {entry.name: {"version": entry.version, "bundle_digest": entry.bundle_digest} for entry in done},
    )
    new = [f"v{entry.version} {entry.name}" for entry in done if entry.new]
    print(f"register: {model_name(task)}, {', '.join(new) if new else 'nothing new'}, {arguments.out}")


if __name__ == "__main__":
    run_stage(main)
