"""The family's figures, as evaluation wrote them: one row per member."""

from dataclasses import dataclass, fields
from pathlib import Path

from segdistill.files import read_json
from segdistill.registry.store import RegistryError

_NOISY = ("cpu_seconds", "peak_rss_mb")


@dataclass(frozen=True)
class Member:
    """One row of ``family.json``.

    Attributes:
        name: e.g. ``student-x4``.
        role: ``teacher``, ``student`` or ``control``.
        width: channels relative to the teacher's.
        parameters: count.
        macs: multiply-accumulates of one window.
        dice: mean over structures, then over seen-site test cases; a fraction.
        dice_held_out_site: the same on held-out sites; None where no site is held out.
        nsd: normalised surface Dice, a fraction.
        hd95_mm: 95th percentile Hausdorff distance, mm.
        retention: ``dice`` relative to the teacher's.
        retention_low: lower end of its interval; students only, as the next four.
        margin: share of the teacher's ``dice`` that it may lose.
        confidence: coverage of the interval.
        non_inferior: whether the whole interval lies inside the margin.
        beats_control: whether distillation earned its place; None without a control, too.
        cpu_seconds: CPU time of a whole scan, reading to writing, s.
        peak_rss_mb: peak memory of the same, MB.
    """

    name: str
    role: str
    width: float
    parameters: int
    macs: int
    dice: float
    dice_held_out_site: float | None
    nsd: float
    hd95_mm: float
    retention: float
    cpu_seconds: float
    peak_rss_mb: float
    retention_low: float | None
    margin: float | None
    confidence: float | None
    non_inferior: bool | None
    beats_control: bool | None

    @property
    def verdicts(self) -> dict[str, str]:
        """What evaluation found about a student, and by which measure; empty for others."""
        measure = {"margin": self.margin, "confidence": self.confidence}
        found = {"non_inferior": self.non_inferior, "beats_control": self.beats_control}
        return {name: f"{value:g}" for name, value in measure.items() if value is not None} | {
            name: "yes" if value else "no" for name, value in found.items() if value is not None
        }

    @property
    def metrics(self) -> dict[str, float]:
        """The measured figures, by name."""
        names = ("dice", "dice_held_out_site", "nsd", "hd95_mm", "retention", "retention_low", *_NOISY)
        return {name: float(getattr(self, name)) for name in names if getattr(self, name) is not None}

    @property
    def quality(self) -> dict[str, float]:
        """The measured figures that come out the same when measured again: all but time and memory."""
        return {name: value for name, value in self.metrics.items() if name not in _NOISY}


def read_family(path: Path) -> list[Member]:
    """Read ``family.json``; columns that are not known here are left out.

    Raises:
        RegistryError: it isn't a list of rows, a column is missing or a name is listed twice.
    """
    rows = read_json(path)
    names = [entry.name for entry in fields(Member)]
    try:
        family = [Member(**{name: row[name] for name in names}) for row in rows]
    except (KeyError, TypeError) as error:
        raise RegistryError(f"{path}: not a family ({error!r}). Run 'dvc repro evaluate'.") from error
    if len({member.name for member in family}) != len(family):
        raise RegistryError(f"{path}: a name is listed twice. Run 'dvc repro evaluate'.")
    return family


def control_of(member: Member, family: list[Member]) -> Member | None:
    """The control beside a student: the same width, trained without a teacher."""
    if member.role != "student":
        return None
    return next((row for row in family if row.role == "control" and row.width == member.width), None)
