"""Stage ``prepare``: the plan from the training split, and the cases as the networks see them."""

import argparse
import sys
from functools import partial
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.interop.ready_plan import ready_plan
from segdistill.simulation.rendering.making import write_person
from segdistill.simulation.rendering.whole import renderer
from segdistill.sites.manifest import read_sites
from segdistill.sites.prepare import hold_out, make_plan, prepare


def main() -> None:
    """Read the parameters, make the plan, preprocess the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=Path, required=True, help="folder of the sites")
    parser.add_argument("--plan", type=Path, required=True, help="plan.json to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--hold-out",
        metavar="SITE",
        nargs="+",
        default=[],
        help="leave these sites out of training, too",
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    sites = hold_out(list(read_sites(arguments.sites)), arguments.hold_out)
    if params.teacher.folder:
        plan = ready_plan(params.teacher.folder, [site for _, site in sites], params.task)
    else:
        plan = make_plan(
            sites,
            params.plan,
            task=params.task,
            stem_stride=params.network.stem_stride,
            stages=params.network.stages,
            render=partial(renderer, params.task),
        )

    def progress(done: int, total: int) -> None:
        print(
            f"\rprepare: {done}/{total} cases", end="\n" * (done == total), file=sys.stderr, flush=True
        )

    index = prepare(sites, plan, arguments.out, partial(write_person, task=params.task), progress)
    plan.write(arguments.plan)
    splits = [entry["split"] for entry in index]
    print(
        f"prepare: {splits.count('train')} train and {splits.count('val')} val cases at "
        f"{' x '.join(f'{size:g}' for size in plan.spacing_mm)} mm, {arguments.out}"
    )


if __name__ == "__main__":
    run_stage(main)
