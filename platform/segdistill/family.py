"""What evaluation found out about each member of a family: ``reports/TASK/family.json``, typed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from segdistill.files import SegdistillError, json_bytes, read_json, write_json

Role = Literal["teacher", "student", "control"]


@dataclass(frozen=True)
class Verdict:
    """What the comparisons found about a student.

    Attributes:
        retention_low: lower end of the interval of its retention on seen sites; None with fewer than
            six subjects, or where the teacher finds nothing in one of them.
        margin: share of the teacher's Dice that it may lose.
        confidence: coverage of the interval.
        non_inferior: whether ``retention_low`` is above 1 - margin: what it loses against the teacher
            stays inside the margin, whichever subjects were drawn.
        beats_control: whether it is surely better than its control in Dice or HD95 on seen sites, or in
            Dice on held-out sites, and surely worse in neither Dice; None without a control.
        better_in: in which of them it is surely better.
        worst_structure: the structure whose mean Dice loses most against the teacher's, seen sites.
        worst_structure_loss: that loss, a fraction of 1; negative where even the worst one gains.
        worst_site: the site, held-out ones included, whose mean Dice loses most.
        worst_site_loss: that loss.
    """

    retention_low: float | None
    margin: float
    confidence: float
    non_inferior: bool
    beats_control: bool | None
    better_in: tuple[str, ...]
    worst_structure: str
    worst_structure_loss: float
    worst_site: str
    worst_site_loss: float


@dataclass(frozen=True)
class Figures:
    """The figures of one member.

    Means are over structures, then over test cases. What ends in ``_held_out_site`` is of the sites that
    were kept out of training, None without one; the others are of the sites that took part.

    Attributes:
        name: e.g. ``student-x4``.
        role: ``teacher``, ``student`` or ``control``.
        width: channels relative to the teacher's.
        parameters: count.
        macs: multiply-accumulates of one window.
        dice: a fraction.
        dice_held_out_site: likewise.
        nsd: normalised surface Dice, a fraction.
        nsd_held_out_site: likewise.
        hd95_mm: 95th percentile Hausdorff distance, mm; None where no distance exists.
        hd95_mm_held_out_site: likewise.
        retention: ``dice`` relative to the teacher's; None where that is 0.
        retention_held_out_site: likewise.
        cases: test cases.
        cases_held_out_site: likewise.
        structures_missed: structures in only one of prediction and reference, over all test cases.
        ece: expected calibration error, a fraction.
        cpu_seconds: CPU time of a whole scan, reading to writing, s.
        cpu_seconds_network: CPU time of the network alone, s.
        wall_seconds: time of a whole scan by the clock, s.
        peak_rss_mb: peak memory of a whole scan, MB.
        parameter_reduction: share of the teacher's parameters that is saved.
        cpu_reduction: share of the teacher's ``cpu_seconds`` that is saved.
        verdict: of a student; None for teacher and controls.
    """

    name: str
    role: Role
    width: float
    parameters: int
    macs: int
    dice: float
    dice_held_out_site: float | None
    nsd: float
    nsd_held_out_site: float | None
    hd95_mm: float | None
    hd95_mm_held_out_site: float | None
    retention: float | None
    retention_held_out_site: float | None
    cases: int
    cases_held_out_site: int
    structures_missed: int
    ece: float
    cpu_seconds: float
    cpu_seconds_network: float
    wall_seconds: float
    peak_rss_mb: float
    parameter_reduction: float
    cpu_reduction: float
    verdict: Verdict | None


_OF_A_VERDICT = [entry.name for entry in fields(Verdict)]
_KEYS = {entry.name for entry in fields(Figures)} - {"verdict"} | set(_OF_A_VERDICT)
_ROWS = TypeAdapter(list[Figures])


def write_family(path: Path, family: Sequence[Figures]) -> None:
    """Write ``family.json``: a flat row per member, the verdict's keys null where it has none."""
    write_json(path, [flat(member) for member in family])


def read_family(path: Path) -> list[Figures]:
    """Read ``family.json``, in the order of its rows.

    Raises:
        SegdistillError: a key is missing or unknown, a value has the wrong type, or a name is listed
            twice.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise _not_a_family(path, "expected a list of members")
    family = _read(rows, path)
    if len({member.name for member in family}) != len(family):
        raise _not_a_family(path, "a name is listed twice")
    return family


def _read(rows: Sequence[Any], path: Path) -> list[Figures]:
    try:
        return _ROWS.validate_json(json_bytes([_nested(row) for row in rows]), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(str(part) for part in first["loc"])
        raise _not_a_family(path, f"row {where}: {first['msg'].lower()}") from error
    except ValueError as error:
        raise _not_a_family(path, str(error)) from error


def flat(member: Figures) -> dict[str, Any]:
    """A row of ``family.json``, plain JSON values; :func:`figures_from` reads it."""
    row = asdict(member)
    return row | (row.pop("verdict") or dict.fromkeys(_OF_A_VERDICT))


def figures_from(row: Any, path: Path) -> Figures:
    """The figures of one row; ``path`` names where it is from.

    Raises:
        SegdistillError: as :func:`read_family`.
    """
    return _read([row], path)[0]


def _nested(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError("expected a list of members")
    if wrong := sorted(_KEYS ^ set(row)):
        missing = [key for key in wrong if key in _KEYS]
        raise ValueError(
            f"no key {', '.join(missing)}" if missing else f"unknown key {', '.join(wrong)}"
        )
    verdict = {key: row[key] for key in _OF_A_VERDICT}
    own = {key: value for key, value in row.items() if key not in verdict}
    return own | {"verdict": verdict if row["role"] == "student" else None}


def _not_a_family(path: Path, what: str) -> SegdistillError:
    return SegdistillError(f"{path}: not a family's figures ({what}). Run 'dvc repro evaluate'.")


def control_of(member: Figures, family: Sequence[Figures]) -> Figures | None:
    """The control beside a student: the same width, trained without a teacher."""
    if member.role != "student":
        return None
    return next((row for row in family if row.role == "control" and row.width == member.width), None)
