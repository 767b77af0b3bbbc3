"""Scans in a FreeSurfer subjects folder: SUBJECT/mri/{orig,norm,aparc.DKTatlas+aseg}.mgz."""

import re
from pathlib import Path

from segdistill.files import SegdistillError
from segdistill.sites.imports.scan import Found, Problem, Scan

IMAGES = ("orig.mgz", "norm.mgz")
LABEL = "aparc.DKTatlas+aseg.mgz"

# Subjects that FreeSurfer itself puts or links there: templates, nobody's scans.
_TEMPLATES = re.compile(r"fsaverage.*|[lr]h\.EC_average|cvs_avg35.*|V1_average|bert")
_BIDS_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?")


def find_freesurfer(folder: Path, image: str | None = None) -> Found:
    """Find the scans of a FreeSurfer subjects folder.

    Folders named ``sub-X_ses-Y`` are sessions of subject ``sub-X``; any other folder is a subject.

    Args:
        folder: what FreeSurfer calls SUBJECTS_DIR.
        image: ``orig.mgz`` or ``norm.mgz``; None: the first of them that every subject has, so that
            a site's scans are all with, or all without, a skull.

    Raises:
        SegdistillError: another ``image``.
    """
    if image not in (None, *IMAGES):
        raise SegdistillError(f"--image {image}: use {' or '.join(IMAGES)}.")
    subjects = [
        path
        for path in sorted(folder.iterdir())
        if (path / "mri").is_dir() and not _TEMPLATES.fullmatch(path.name)
    ]
    if image is None:
        complete = [name for name in IMAGES if all((path / "mri" / name).is_file() for path in subjects)]
        image = (complete or IMAGES)[0]
    scans: list[Scan] = []
    problems: list[Problem] = []
    for path in subjects:
        if ".long." in path.name or (path / "base-tps").exists():
            what = "is a longitudinal run and repeats other scans; import the cross-sectional ones"
            problems.append(Problem(path.name, what))
        elif any((path / "scripts").glob("IsRunning*")):
            problems.append(Problem(path.name, "recon-all has not finished (scripts/IsRunning*)"))
        elif not (path / "mri" / image).is_file():
            problems.append(Problem(path.name, f"has no mri/{image}"))
        else:
            match = _BIDS_SUBJECT.fullmatch(path.name)
            label = path / "mri" / LABEL
            scans.append(
                Scan(
                    source=path.name,
                    subject=match.group(1) if match else path.name,
                    image=path / "mri" / image,
                    label=label if label.is_file() else None,
                )
            )
    return Found(tuple(scans), tuple(problems))
