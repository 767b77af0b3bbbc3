"""What an import finds in a source folder: scans, and what is wrong with them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, unfetched
from segdistill.shown import shown
from segdistill.sites.manifest import Split


@dataclass(frozen=True)
class Scan:
    """One scan as the source folder names it; none of these names reach the site.

    Attributes:
        source: the scan's name in the source, e.g. ``sub-01/ses-2/sub-01_ses-2_T1w``.
        subject: the person's name in the source; scans of one person share it.
        image: file of the scan; None where there is a label map alone.
        label: file of its label map, or None.
        names: the source's label code to its name, where the source says so.
        split: the split that the source sets, or None where the import may choose.
        scanner: facts of the acquisition that are safe to keep.
    """

    source: str
    subject: str
    image: Path | None
    label: Path | None
    names: dict[int, str] | None = None
    split: Split | None = None
    scanner: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one case (or with the source, where no case can be named)."""

    case: str
    what: str


@dataclass(frozen=True)
class Found:
    """All that a layout's finder saw: the scans, and what it could not make sense of."""

    scans: tuple[Scan, ...]
    problems: tuple[Problem, ...] = ()


class ImportProblemsError(SegdistillError):
    """Why a site was not imported, case by case; nothing of it was written.

    Attributes:
        problems: sorted by case.
    """

    def __init__(self, source: Path, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.case, problem.what)))
        lines = "\n".join(f"  {problem.case}: {problem.what}" for problem in self.problems)
        super().__init__(
            f"{source}: {len(self.problems)} problem(s), nothing was imported.\n{lines}\n"
            "Mend them in the source, or leave cases out with --exclude CASE, and run the command again."
        )


def listed(path: Path) -> bool:
    """Whether the source has this file, be it as a link whose target isn't here.

    Such a link is a file that is missing, not a file that never was: an unfetched label map must not
    pass for an unlabelled scan.
    """
    return path.exists() or unfetched(path)


def without(found: Found, exclude: Iterable[str]) -> Found:
    """``found`` without the scans (by source or subject name) and problems that ``exclude`` names.

    Raises:
        SegdistillError: a name that excludes nothing, most likely a slip of the pen.
    """
    names = set(map(shown, exclude))
    known = {name for scan in found.scans for name in (scan.source, scan.subject)}
    known |= {problem.case for problem in found.problems}
    if names - known:
        raise SegdistillError(
            f"--exclude {', '.join(sorted(names - known))}: no such case or subject in the source."
        )
    return Found(
        tuple(scan for scan in found.scans if not {scan.source, scan.subject} & names),
        tuple(problem for problem in found.problems if problem.case not in names),
    )
