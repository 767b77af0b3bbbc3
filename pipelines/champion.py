"""Stage ``champion``: which version the alias stands for, in a receipt that packaging depends on."""

import argparse
from dataclasses import asdict
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import write_json
from segdistill.registry.champion import aliases, resolve
from segdistill.registry.register import model_name
from segdistill.shown import repro


def main() -> None:
    """Resolve the alias; that nobody has promoted yet is no error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root")
    parser.add_argument("--out", type=Path, required=True, help="receipt to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    params = read_params(arguments.root / arguments.params)
    task, alias = params.task, params.registry.alias
    if not aliases(arguments.root, task):
        write_json(arguments.out, {"version": None})
        print(
            f"champion: nobody has promoted yet. 'make ui': Model training > Model registry > "
            f"{model_name(task)} > a version > Aliases > Add > {alias} > Save aliases;\n"
            f"champion: or 'segdistill promote VERSION --task {task} --reason ...'. "
            f"Then '{repro(arguments.root, task, 'package')}'."
        )
        return
    champion = resolve(arguments.root, task, alias)
    write_json(arguments.out, asdict(champion))
    print(f"champion: v{champion.version} {champion.name}, {arguments.out}")
    if champion.objection:
        print(f"champion: WARNING: it {champion.objection}")


if __name__ == "__main__":
    run_stage(main)
