"""Who is evaluated on what: the bundles of a family, and the test cases of all sites."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, read_json, subfolders
from segdistill.sites.manifest import Site, read_sites, take_turns


@dataclass(frozen=True)
class Member:
    """One bundle of a family.

    Attributes:
        name: e.g. ``teacher``, ``student-x4``, ``control-x4``.
        role: ``teacher``, ``student`` or ``control``.
        width: channel multiplier against the teacher's (1.0 for the teacher).
        parameters: number of network weights.
        macs: multiply-accumulate operations, as the bundle's provenance states them.
        folder: the bundle's folder.
    """

    name: str
    role: str
    width: float
    parameters: int
    macs: int
    folder: Path


def width_label(width: float) -> str:
    """A width as people write it: ``1``, ``1/4``."""
    return str(Fraction(width).limit_denominator(64))


@dataclass(frozen=True)
class TestCase:
    """A labelled case of the test split.

    Attributes:
        case: the case's name.
        subject: the subject's pseudonym.
        site: the site's name.
        held_out: whether no case of that site was ever trained on.
        image: the scan's file.
        label: the reference label map's file.
    """

    __test__ = False  # pytest: not a test

    case: str
    subject: str
    site: str
    held_out: bool
    image: Path
    label: Path


@dataclass(frozen=True)
class TestSet:
    """All test cases of a task, and what must be said about them.

    Attributes:
        cases: sorted by site, then case.
        structures: label code to name.
        simulated: names of the sites whose subjects and scanners are simulated.
        held_out: names of the sites that were never trained on.
        notes: what the sites' manifests ask every reader to know, each once.
        unlabelled: number of test cases without a label map; they can't be scored.
    """

    __test__ = False

    cases: tuple[TestCase, ...]
    structures: Mapping[int, str]
    simulated: tuple[str, ...]
    held_out: tuple[str, ...]
    notes: tuple[str, ...]
    unlabelled: int

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names: those that took part in training first, then the held-out ones."""
        names = sorted({(case.held_out, case.site) for case in self.cases})
        return tuple(site for _, site in names)


def read_members(bundles: Path) -> tuple[Member, ...]:
    """Read who is in ``bundles``, the teacher first, then by width, each student before its control.

    Raises:
        SegdistillError: no bundle, a provenance file without a needed field, or not one teacher.
    """
    members = [
        _read_member(path) for path in subfolders(bundles) if (path / "provenance.json").is_file()
    ]
    teachers = [member.name for member in members if member.role == "teacher"]
    if len(teachers) != 1:
        raise SegdistillError(
            f"{bundles}: {len(teachers)} teachers among {len(members)} bundles; a family has exactly "
            "one. Run 'dvc repro export'."
        )
    order = {"teacher": 0, "student": 1, "control": 2}
    return tuple(
        sorted(members, key=lambda m: (m.role != "teacher", -m.width, order.get(m.role, 3), m.name))
    )


def _read_member(folder: Path) -> Member:
    path = folder / "provenance.json"
    body: dict[str, Any] = read_json(path)
    try:
        return Member(
            name=str(body["name"]),
            role=str(body["role"]),
            width=float(body["width"]),
            parameters=int(body["parameters"]),
            macs=int(body["macs"]),
            folder=folder,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SegdistillError(
            f"{path}: not a bundle's provenance ({error!r}). Run 'dvc repro export'."
        ) from error


def read_test_set(sites: Path) -> TestSet:
    """Collect the test split of every site under ``sites``.

    Raises:
        SegdistillError: no site, or no labelled test case on a site that took part in training.
    """
    cases: list[TestCase] = []
    found: list[Site] = []
    unlabelled = 0
    for folder, site in read_sites(sites):
        found.append(site)
        for case in sorted(site.cases, key=lambda case: case.case):
            if case.split != "test":
                continue
            if case.label is None:
                unlabelled += 1
                continue
            cases.append(
                TestCase(
                    case=case.case,
                    subject=case.subject,
                    site=site.site,
                    held_out=site.held_out,
                    image=folder / case.scan,
                    label=folder / case.label,
                )
            )
    if not any(not case.held_out for case in cases):
        raise SegdistillError(
            f"{sites}: no labelled test case on any site that is trained on. "
            "Give at least one such site a test split."
        )
    tested = {case.site for case in cases}
    return TestSet(
        cases=tuple(cases),
        structures=dict(sorted(found[0].structures.items())),  # JSON sorts "10" before "2"
        simulated=tuple(site.site for site in found if site.simulated and site.site in tested),
        held_out=tuple(site.site for site in found if site.held_out and site.site in tested),
        notes=tuple(dict.fromkeys(site.note for site in found if site.note)),
        unlabelled=unlabelled,
    )


def spread_over_sites(cases: tuple[TestCase, ...], count: int) -> tuple[TestCase, ...]:
    """The first ``count`` cases when sites take turns, in order of their names."""
    by_site: dict[str, list[TestCase]] = {}
    for case in cases:
        by_site.setdefault(case.site, []).append(case)
    return tuple(take_turns([own for _, own in sorted(by_site.items())])[:count])
