"""``python -m benchmarks.quality BUNDLE SITES OUT``: does the quality figure tell good from bad?

Every labelled case of a split is segmented as it is and spoilt on purpose. OUT gets ``quality.csv``, a
row per label map, and ``quality.json``: how confidence sorts them by their Dice, and the limits that
follow. ``--seal FOLDER`` writes the bundle with these limits: choose them on the validation split, then
run the sealed bundle on the test split, whose verdicts are the evidence.
"""

import argparse
import json
import sys
from pathlib import Path

from pipelines.stage import run_stage
from segdistill.evaluation.quality import DECIMALS, labelled_cases, limits_from, quality_table, summary
from segdistill.evaluation.score import write_table
from segdistill.files import write_json
from segdistill.runtime.bundle import Bundle, seal
from segdistill.runtime.quality import FIELD
from segdistill.runtime.segment import Segmentator


def main() -> None:
    """Measure, write, and seal if that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("sites", type=Path, help="folder of the sites, e.g. data/sites/brain_mri")
    parser.add_argument("out", type=Path, help="folder of quality.csv and quality.json")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="which cases")
    parser.add_argument("--bad", type=float, default=0.7, help="below this Dice a label map is bad")
    parser.add_argument("--seal", type=Path, help="folder for the bundle with the limits found")
    given = parser.parse_args()
    bundle = Bundle.read(given.bundle)
    table = quality_table(
        Segmentator(bundle),
        labelled_cases(given.sites, given.split),
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    limits = limits_from(table, given.bad)
    body = {"bundle_digest": bundle.digest, "split": given.split, **summary(table, limits, given.bad)}
    write_table(given.out / "quality.csv", table, DECIMALS)
    write_json(given.out / "quality.json", body)
    print(json.dumps(body, indent=2))
    if given.seal:
        sealed = seal(bundle.folder, given.seal, {}, {FIELD: limits.to_json()})
        print(f"{given.seal}: the bundle with these limits, {sealed.digest}")


if __name__ == "__main__":
    run_stage(main)
