"""Stage ``site``: simulate one hospital from the anatomy."""

import argparse
import sys
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import SegdistillError
from segdistill.simulation.anatomy import read_anatomy
from segdistill.simulation.simulate import simulate_site


def main() -> None:
    """Read the parameters and simulate the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a key of 'sites' in the parameters")
    parser.add_argument("--anatomy", type=Path, required=True, help="folder of the anatomy stage")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    if arguments.name not in params.sites:
        raise SegdistillError(
            f"{arguments.params}: no site {arguments.name!r} under 'sites'. "
            f"Take one that is there: {', '.join(params.sites) or 'there is none'}."
        )

    def progress(done: int, total: int) -> None:
        print(
            f"\r{arguments.name}: {done}/{total} subjects",
            end="\n" * (done == total),
            file=sys.stderr,
            flush=True,
        )

    site = simulate_site(
        read_anatomy(arguments.anatomy),
        arguments.name,
        params.sites[arguments.name],
        params.cohort,
        task=params.task,
        seed=params.seed,
        out=arguments.out,
        progress=progress,
    )
    splits = [case.split for case in site.cases]
    shares = ", ".join(f"{splits.count(split)} {split}" for split in ("train", "val", "test"))
    print(f"{arguments.name}: {len(splits)} SIMULATED subjects ({shares}), {arguments.out}")


if __name__ == "__main__":
    run_stage(main)
