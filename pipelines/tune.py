"""Stage ``tune``: how the promoted version runs fastest on this machine, proven on validation cases."""

import argparse
import sys
import tempfile
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import read_json, write_json
from segdistill.registry.champion import fetch_bundle
from segdistill.runtime.setting import Setting
from segdistill.sites.manifest import read_sites, take_turns
from segdistill.tuning.choice import Tolerance
from segdistill.tuning.search import TuningCase, tune
from serving.packaging.bento import check_receipt


def main() -> None:
    """Measure the champion; without one, or without a scan, write that nothing was chosen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root")
    parser.add_argument("--champion", type=Path, required=True, help="receipt of stage 'champion'")
    parser.add_argument("--sites", type=Path, required=True, help="folder of the sites")
    parser.add_argument("--out", type=Path, required=True, help="tuning to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    knobs = read_params(arguments.root / arguments.params).tuning
    promoted = check_receipt(read_json(arguments.champion), arguments.champion)
    cases = validation_cases(arguments.sites, knobs.cases)
    if promoted is None or not cases:
        write_json(arguments.out, {"choice": None})
        why = "nobody has promoted yet" if promoted is None else "no site has a validation case"
        print(f"tune: nothing to tune, {why}")
        return
    with tempfile.TemporaryDirectory(prefix="segdistill-tune-") as scratch:
        bundle = Path(scratch) / "bundle"
        fetch_bundle(arguments.root, promoted, bundle)
        tuning = tune(
            bundle,
            cases,
            Tolerance(knobs.mean_loss, knobs.structure_loss),
            overlaps=knobs.overlaps,
            progress=lambda line: print(f"tune: {line}", file=sys.stderr, flush=True),
        )
    write_json(arguments.out, tuning)
    choice = Setting.from_json(tuning["choice"], str(arguments.out))
    print(f"tune: v{promoted.version} {promoted.name} runs with {choice}, {arguments.out}")


def validation_cases(sites: Path, count: int) -> list[TuningCase]:
    """The first ``count`` validation cases when sites take turns; labelled ones before others."""
    by_site = [
        [
            TuningCase(folder / case.scan, folder / case.label if case.label else None)
            for case in sorted(site.cases, key=lambda case: (case.label is None, case.case))
            if case.split == "val"
        ]
        for folder, site in read_sites(sites)
    ]
    turns = take_turns(by_site)
    return sorted(turns, key=lambda case: case.labels is None)[:count]


if __name__ == "__main__":
    run_stage(main)
