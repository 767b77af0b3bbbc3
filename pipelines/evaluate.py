"""Stage ``evaluate``: every bundle on every test case, into scorecard and family table."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.evaluation.evaluate import Settings, evaluate


def main() -> None:
    """Read the parameters, evaluate, print the family table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", type=Path, required=True, help="folder with a bundle per member")
    parser.add_argument("--sites", type=Path, required=True, help="folder of the sites")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    table = evaluate(
        arguments.bundles,
        arguments.sites,
        arguments.out,
        params.task,
        Settings(**asdict(params.evaluation), seed=params.seed),
        progress=lambda line: print(f"evaluate: {line}", file=sys.stderr, flush=True),
    )
    for row in table:
        held_out = row.dice_held_out_site
        print(
            f"{row.name:<12} Dice {row.dice:.4f}"
            + (f" (held-out site {held_out:.4f})" if held_out is not None else "")
            + (f", retention {row.retention:.2%}" if row.retention is not None else "")
            + f", {row.parameters:,} parameters, "
            f"{row.cpu_seconds:.2f} CPU s a scan"
        )


if __name__ == "__main__":
    run_stage(main)
