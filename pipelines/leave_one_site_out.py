"""Study ``leave_one_site_out``: its test cases by a family that never saw it, and by the full one."""

import argparse
import sys
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.evaluation.members import read_members, read_test_set
from segdistill.evaluation.score import DECIMALS, make_scorecard, read_scorecard, write_table
from segdistill.files import write_json
from segdistill.studies.leave_one_out import both, only_site, summarise


def main() -> None:
    """Read the parameters, score the site's test cases, compare, write the site's table and summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", help="the site that was left out")
    parser.add_argument("--bundles", type=Path, required=True, help="bundles of the family without it")
    parser.add_argument("--full", type=Path, required=True, help="scorecard of the full family")
    parser.add_argument("--sites", type=Path, required=True, help="folder of the sites")
    parser.add_argument("--out", type=Path, required=True, help="folder for SITE.csv and SITE.json")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    family = read_members(arguments.bundles)
    card = make_scorecard(
        family,
        only_site(read_test_set(arguments.sites), arguments.site),
        params.evaluation.nsd_tolerance_mm,
        progress=lambda line: print(f"leave_one_site_out: {line}", file=sys.stderr, flush=True),
    )
    table = arguments.out / f"{arguments.site}.csv"
    # From the file on, so that both families' figures have the same decimals.
    write_table(table, card, DECIMALS)
    pairs = both(read_scorecard(table), read_scorecard(arguments.full))
    write_table(table, pairs, DECIMALS)
    summary = summarise(
        pairs,
        family,
        site=arguments.site,
        confidence=params.evaluation.confidence,
        seed=params.seed,
    )
    write_json(arguments.out / f"{arguments.site}.json", summary)
    for row in summary["members"]:
        print(
            f"{row['name']:<12} on {arguments.site}: Dice {row['dice']:.4f} without it in training, "
            f"{row['dice_full']:.4f} with it"
        )


if __name__ == "__main__":
    run_stage(main)
