"""The table of volumes: one row per scan, kept from run to run, and what says that a scan is done."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segdistill.files import SegdistillError, atomic_path
from segdistill.runtime.segment import Segmentation

# Before and after the volumes.
_HEAD = ("scan", "labels", "model", "bundle_digest", "scan_digest")
_TAIL = (
    *("verdict", "reasons", "confidence", "lowest_confidence", "lowest_structure"),
    *("seconds", "error"),
)
_UNIT = "_ml"


@dataclass(frozen=True)
class Row:
    """What became of one scan. All values are as they are written.

    Attributes:
        labels: name of its label map's file, which no other row has.
        scan: the scan's path, as the user gave it.
        model: the family member that segmented it.
        bundle_digest: digest of its bundle.
        scan_digest: see :func:`~segdistill.batch.scans.digest_of`; empty where it couldn't be read.
        volumes_ml: millilitres by structure.
        facts: the other columns, by name.
    """

    labels: str
    scan: str
    model: str
    bundle_digest: str
    scan_digest: str = ""
    volumes_ml: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def error(self) -> str:
        """Why there is no label map; empty if there is one."""
        return self.facts.get("error", "")

    @property
    def to_check(self) -> str:
        """Why a person must look at the label map before anybody uses it; empty if nothing says so."""
        return self.facts.get("reasons", "")


def figures(outcome: Segmentation, seconds: float) -> dict[str, str]:
    """The columns after the volumes, of a scan that was segmented."""
    quality = outcome.quality
    name, value = quality.lowest or ("", None)
    return {
        "verdict": quality.verdict or "",
        "reasons": "; ".join(quality.reasons),
        "confidence": f"{quality.confidence:.4f}",
        "lowest_confidence": "" if value is None else f"{value:.4f}",
        "lowest_structure": name,
        "seconds": f"{seconds:.2f}",
    }


def read_table(path: Path) -> dict[str, Row]:
    """The rows of a table, by the name of their label maps; none where there is no table.

    Raises:
        SegdistillError: another table, or none at all.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            lines = list(reader)
            columns = list(reader.fieldnames or [])
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise _not_a_table(path, str(error)) from error
    if missing := [name for name in (*_HEAD, *_TAIL) if name not in columns]:
        raise _not_a_table(path, f"no column {', '.join(missing)}")
    if any(None in line or None in line.values() for line in lines):
        raise _not_a_table(path, "a row has too many or too few cells")
    structures = [name for name in columns if name.endswith(_UNIT) and name not in (*_HEAD, *_TAIL)]
    rows = [
        Row(
            **{name: line[name] for name in _HEAD},
            volumes_ml={name.removesuffix(_UNIT): line[name] for name in structures if line[name]},
            facts={name: line[name] for name in _TAIL if line[name]},
        )
        for line in lines
    ]
    return {row.labels: row for row in rows}


def put_row(path: Path, row: Row) -> None:
    """Add a row to the table, or replace the one of the same label map; all others stay.

    Raises:
        SegdistillError: what is there is another table.
        DiskFullError: no space.
    """
    rows = read_table(path)
    rows[row.labels] = row
    structures = dict.fromkeys(name for one in rows.values() for name in one.volumes_ml)
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*_HEAD, *(f"{name}{_UNIT}" for name in structures), *_TAIL])
        for one in rows.values():
            writer.writerow(
                [getattr(one, name) for name in _HEAD]
                + [one.volumes_ml.get(name, "") for name in structures]
                + [one.facts.get(name, "") for name in _TAIL]
            )


def _not_a_table(path: Path, why: str) -> SegdistillError:
    return SegdistillError(
        f"{path}: not a table that this command wrote ({why}). Move it away, or name another folder."
    )
