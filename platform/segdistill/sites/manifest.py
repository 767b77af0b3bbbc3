"""The manifest of a site: which cases it has, where their files are, and which split each is in."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from segdistill.files import SegdistillError, read_json, subfolders, write_json
from segdistill.shown import command

Split = Literal["train", "val", "test"]

MANIFEST = "manifest.json"

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Case:
    """One scan of one subject.

    Attributes:
        case: identifier, unique over all sites of a task, free of patient identifiers.
        subject: pseudonym; all cases of a subject are in one split.
        image: path of the scan, relative to the site's folder; None where scans are rendered from the
            label map while training.
        label: path of the label map on the scan's grid, in the task's codes, 255 where the source can't
            tell (``overlap.IGNORED``); None where there is none.
            Without a scan it is in the site's ``source_codes``.
        split: ``train``, ``val`` or ``test``.
        scanner: facts of the acquisition, e.g. ``{"voxel_mm": [1.0, 1.0, 1.0]}``.
    """

    case: str
    subject: str
    image: str | None
    label: str | None
    split: Split
    scanner: dict[str, Any] = field(default_factory=dict)

    @property
    def scan(self) -> str:
        """``image``, of a case that has one.

        Raises:
            SegdistillError: it is a label map alone.
        """
        if self.image is None:
            raise SegdistillError(f"{self.case}: is a label map without a scan. Choose another case.")
        return self.image


@dataclass(frozen=True)
class Site:
    """A site: one hospital's (or simulated hospital's) cases of one task.

    Attributes:
        site: the site's name.
        task: the task its labels are for.
        simulated: whether subjects and scanner are simulated.
        held_out: whether the whole site is kept out of training (all its cases are ``test``).
        label_protocol: name of the protocol the labels follow.
        structures: label code to structure name; 0 is background and not listed.
        cases: the cases, sorted by name.
        note: what a reader must know about this data, in one or two sentences.
        source_codes: of label maps without scans, each code to the task's, 0 for background and 255 for
            ignored.
    """

    site: str
    task: str
    simulated: bool
    held_out: bool
    label_protocol: str
    structures: dict[int, str]
    cases: tuple[Case, ...]
    note: str = ""
    source_codes: dict[int, int] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Check and write ``folder/manifest.json``.

        Raises:
            SegdistillError: the manifest contradicts itself (see :meth:`check`).
        """
        self.check(folder / MANIFEST)
        body = asdict(self)
        body["structures"] = {str(code): name for code, name in self.structures.items()}
        body["source_codes"] = {str(code): ours for code, ours in self.source_codes.items()}
        if not self.source_codes:
            del body["source_codes"]
        write_json(folder / MANIFEST, body)

    @classmethod
    def read(cls, folder: Path) -> "Site":
        """Read and check ``folder/manifest.json``.

        Raises:
            SegdistillError: missing, not JSON, a field missing, or contradicting itself.
        """
        path = folder / MANIFEST
        body = read_json(path)
        try:
            body["structures"] = {int(code): name for code, name in body["structures"].items()}
            codes = body.pop("source_codes", {})
            body["source_codes"] = {int(code): ours for code, ours in codes.items()}
            body["cases"] = tuple(Case(**case) for case in body["cases"])
            site = cls(**body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SegdistillError(
                f"{path}: not a site manifest ({error}). "
                "Import the site again with 'segdistill site add'."
            ) from error
        site.check(path)
        return site

    def check(self, path: Path) -> None:
        """Raise SegdistillError if names repeat, or a split is unknown or not by subject."""
        seen: set[str] = set()
        split_of: dict[str, str] = {}
        for case in self.cases:
            if case.case in seen:
                raise SegdistillError(f"{path}: case {case.case} is listed twice.")
            seen.add(case.case)
            if case.split not in get_args(Split):
                raise SegdistillError(
                    f"{path}: case {case.case} has split {case.split!r}; "
                    f"use {', '.join(get_args(Split))}."
                )
            if case.image is None and (case.split != "train" or not case.label or not self.source_codes):
                raise SegdistillError(
                    f"{path}: case {case.case} has no scan; only a label map of the train split may be "
                    "without one, at a site with source_codes."
                )
            if split_of.setdefault(case.subject, case.split) != case.split:
                raise SegdistillError(
                    f"{path}: subject {case.subject} is in two splits; splits are by subject."
                )
            if self.held_out and case.split != "test":
                raise SegdistillError(
                    f"{path}: the site is held out, but case {case.case} is in {case.split}."
                )
        if not self.cases:
            raise SegdistillError(f"{path}: the site has no cases.")


def site_folders(folder: Path) -> list[Path]:
    """The folder of every site under ``folder``, sorted by name; half-made ones are hidden and left out.

    Raises:
        SegdistillError: a folder without a manifest, which a broken copy or ``dvc checkout`` leaves.
    """
    found = subfolders(folder)
    for site in found:
        if not (site / MANIFEST).is_file():
            raise SegdistillError(
                f"{site}: no {MANIFEST}, so it is no whole site. Remove the folder, or bring it back: "
                f"{command('dvc', 'checkout', site)}"
            )
    return found


def read_sites(folder: Path) -> Iterator[tuple[Path, Site]]:
    """Yield (site folder, site) for every site under ``folder``, sorted by name.

    Raises:
        SegdistillError: no site at all, one that isn't whole, sites that disagree on structures, or a
            case name that two sites use.
    """
    found = site_folders(folder)
    if not found:
        raise SegdistillError(f"{folder}: no site here. Run 'dvc repro' or 'segdistill site add'.")
    owner: dict[str, str] = {}
    structures: dict[int, str] | None = None
    sites = [(path, Site.read(path)) for path in found]
    for path, site in sites:
        structures = structures or site.structures
        if site.structures != structures:
            raise SegdistillError(
                f"{path / MANIFEST}: its structures differ from those of {found[0] / MANIFEST}."
            )
        for case in site.cases:
            if owner.setdefault(case.case, site.site) != site.site:
                raise SegdistillError(
                    f"{path / MANIFEST}: case {case.case} is also in site {owner[case.case]}."
                )
    yield from sites


def take_turns(groups: Sequence[Sequence[_Item]]) -> list[_Item]:
    """The first of each group, then the second of each, and so on until all groups are used up."""
    longest = max(map(len, groups), default=0)
    return [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
