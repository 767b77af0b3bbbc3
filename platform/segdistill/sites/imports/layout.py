"""Which layout a source folder has, and how to read it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from segdistill.files import SegdistillError, subfolders
from segdistill.shown import shown
from segdistill.sites.imports.bids import anatomy_folders, find_bids, subject_folders
from segdistill.sites.imports.freesurfer import IMAGES, find_freesurfer
from segdistill.sites.imports.labelmaps import find_label_maps
from segdistill.sites.imports.nnunet import find_nnunet
from segdistill.sites.imports.scan import Found, Problem, listed

Layout = Literal["bids", "nnunet", "freesurfer", "labelmaps"]


@dataclass(frozen=True)
class Pick:
    """Which files of a layout to take, where it offers several.

    Attributes:
        suffix: BIDS: suffix of the scans.
        derivative: BIDS: derivative dataset of the label maps; None: any.
        desc: BIDS: ``desc`` entity of the label maps; None: any.
        image: FreeSurfer: ``orig.mgz`` or ``norm.mgz``; None: the first that all have.
        segmentation: FreeSurfer, FastSurfer: the label map in ``mri``; None: FreeSurfer's own.
    """

    suffix: str = "T1w"
    derivative: str | None = None
    desc: str | None = None
    image: str | None = None
    segmentation: str | None = None


def detect_layout(folder: Path) -> Layout:
    """Tell the layout from what lies in the folder.

    Raises:
        SegdistillError: no such folder, no layout fits, or more than one.
    """
    if not folder.is_dir():
        raise SegdistillError(f"{folder}: no such folder. Give a folder with the data after --from.")
    signs: dict[Layout, bool] = {
        "bids": any(anatomy_folders(path) for path in subject_folders(folder)),
        "nnunet": listed(folder / "dataset.json") and (folder / "imagesTr").is_dir(),
        "freesurfer": any(listed(path / "mri" / name) for path in subfolders(folder) for name in IMAGES),
    }
    fitting = [layout for layout, fits in signs.items() if fits]
    if len(fitting) > 1:
        raise SegdistillError(f"{folder}: looks like {' and '.join(fitting)}; say which with --layout.")
    if not fitting:
        raise SegdistillError(
            f"{folder}: no known layout. Looked for sub-*/[ses-*/]anat (bids), dataset.json and "
            "imagesTr (nnunet), and */mri/orig.mgz or norm.mgz (freesurfer). "
            "Give the folder that holds these, or --layout labelmaps for label maps without scans."
        )
    return fitting[0]


def find_scans(folder: Path, layout: Layout, pick: Pick) -> Found:
    """Find all scans of ``folder``, read as ``layout``; their names are as :func:`shown` writes them.

    Raises:
        SegdistillError: no such folder, or it can't be read as that layout at all.
    """
    if not folder.is_dir():
        raise SegdistillError(f"{folder}: no such folder. Give a folder with the data after --from.")
    try:
        found = _find(folder, layout, pick)
    except OSError as error:
        where = shown(error.filename or folder)
        raise SegdistillError(
            f"{where}: can't be read ({error.strerror}). Check who may read it."
        ) from error
    return Found(
        tuple(
            replace(scan, source=shown(scan.source), subject=shown(scan.subject)) for scan in found.scans
        ),
        tuple(Problem(shown(problem.case), shown(problem.what)) for problem in found.problems),
    )


def _find(folder: Path, layout: Layout, pick: Pick) -> Found:
    if layout == "bids":
        return find_bids(folder, pick.suffix, pick.derivative, pick.desc)
    if layout == "nnunet":
        return find_nnunet(folder)
    if layout == "labelmaps":
        return find_label_maps(folder)
    return find_freesurfer(folder, pick.image, pick.segmentation)
