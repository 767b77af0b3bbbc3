"""Stage ``report``: one page of what evaluation, trainings and studies left in the reports."""

import argparse
from pathlib import Path

from pipelines.stage import run_stage
from segdistill.evaluation.report import write_report


def main() -> None:
    """Render the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    arguments = parser.parse_args()
    write_report(arguments.reports, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    run_stage(main)
