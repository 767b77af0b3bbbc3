"""Stage ``package``: the bento of exactly the version that was promoted."""

import argparse
from pathlib import Path

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import read_json, write_json
from serving.packaging.bento import check_receipt, package


def main() -> None:
    """Build the bento and write its exact tag; without a champion, write that there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root")
    parser.add_argument("--champion", type=Path, required=True, help="receipt of stage 'champion'")
    parser.add_argument("--tuning", type=Path, help="what stage 'tune' wrote; without: the reference")
    parser.add_argument("--out", type=Path, required=True, help="receipt to write")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the task's knobs")
    arguments = parser.parse_args()
    settings = read_params(arguments.root / arguments.params).serving
    promoted = check_receipt(read_json(arguments.champion), arguments.champion)
    if promoted is None:
        write_json(arguments.out, {"bento": None})
        print("package: nothing to package before a version is promoted")
        return
    packaged = package(
        arguments.root,
        promoted,
        threads=settings.threads,
        max_body_mb=settings.max_body_mb,
        tuning=arguments.tuning,
    )
    write_json(arguments.out, packaged.to_json())
    print(f"package: {packaged.bento} from v{promoted.version} {promoted.name}, {arguments.out}")
    print("package: serve it with 'bentoml serve'")


if __name__ == "__main__":
    run_stage(main)
