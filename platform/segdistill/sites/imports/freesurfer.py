"""Scans in a FreeSurfer or FastSurfer subjects folder: SUBJECT/mri/{orig,norm,aparc.DKTatlas+aseg}.mgz.

Of FastSurfer (https://deep-mi.org/FastSurfer), ``aparc.DKTatlas+aseg.deep.mgz`` is its network's map.
"""

import re
from pathlib import Path

from segdistill.files import SegdistillError, unfetched, visible
from segdistill.sites.imports.scan import Found, Problem, Scan, listed
from segdistill.texts import FETCH

IMAGES = ("orig.mgz", "norm.mgz")
LABEL = "aparc.DKTatlas+aseg.mgz"

# Subjects that FreeSurfer itself puts or links there: templates, nobody's scans.
_TEMPLATES = re.compile(r"fsaverage.*|[lr]h\.EC_average|cvs_avg35.*|V1_average|bert")
_BIDS_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?")
# Maps of cortex and deep structures; with .deep or .mapped they are FastSurfer's.
_MAPS = re.compile(r"aparc.*\+aseg.*\.mgz")


def find_freesurfer(folder: Path, image: str | None = None, segmentation: str | None = None) -> Found:
    """Find the scans of a FreeSurfer or FastSurfer subjects folder.

    Folders named ``sub-X_ses-Y`` are sessions of subject ``sub-X``; any other folder is a subject. A
    subject whose run failed, or that has other maps than the one asked for, is a problem and not an
    unlabelled scan.

    Args:
        folder: what FreeSurfer calls SUBJECTS_DIR.
        image: ``orig.mgz`` or ``norm.mgz``; None: the first of them that every subject has, so that
            a site's scans are all with, or all without, a skull.
        segmentation: the label map's file in ``mri``; None: ``aparc.DKTatlas+aseg.mgz``.

    Raises:
        SegdistillError: another ``image``, or a ``segmentation`` that no subject has.
    """
    if image not in (None, *IMAGES):
        raise SegdistillError(f"--image {image}: use {' or '.join(IMAGES)}.")
    entries = [path for path in visible(folder.iterdir()) if not _TEMPLATES.fullmatch(path.name)]
    problems = [
        Problem(path.name, f"{link.relative_to(folder)} {FETCH}")
        for path in entries
        for link in (path, path / "mri")
        if unfetched(link)
    ]
    subjects = [path for path in entries if (path / "mri").is_dir()]
    if segmentation and not any(listed(path / "mri" / segmentation) for path in subjects):
        raise SegdistillError(f"--segmentation {segmentation}: no subject of {folder} has it in mri.")
    if image is None:
        complete = [name for name in IMAGES if all(listed(path / "mri" / name) for path in subjects)]
        image = (complete or IMAGES)[0]
    scans: list[Scan] = []
    for path in subjects:
        label: Path | None = path / "mri" / (segmentation or LABEL)
        wrong = _wrong_run(path) or (None if listed(path / "mri" / image) else f"has no mri/{image}")
        if not wrong and label and not listed(label):
            wrong, label = _why_no_map(path, label.name), None
        if wrong:
            problems.append(Problem(path.name, wrong))
            continue
        match = _BIDS_SUBJECT.fullmatch(path.name)
        subject = match.group(1) if match else path.name
        scans.append(Scan(path.name, subject, path / "mri" / image, label))
    return Found(tuple(scans), tuple(problems))


def _wrong_run(subject: Path) -> str | None:
    """Why no file of this subject is to be taken."""
    scripts = subject / "scripts"
    if ".long." in subject.name or (subject / "base-tps").exists():
        return "is a longitudinal run and repeats other scans; import the cross-sectional ones"
    if any(scripts.glob("IsRunning*")):
        return "recon-all has not finished (scripts/IsRunning*)"
    if listed(scripts / "recon-all.error"):
        return "recon-all failed (scripts/recon-all.error); run it again"
    return None


def _why_no_map(subject: Path, wanted: str) -> str | None:
    """Why the label map isn't there though something made others or tried to; None for a bare scan."""
    others = [path.name for path in visible((subject / "mri").iterdir()) if _MAPS.fullmatch(path.name)]
    if others:
        fast = any(".deep." in name or ".mapped." in name for name in others)
        return (
            f"has no mri/{wanted}, but {', '.join(others)}{' of FastSurfer' if fast else ''}; "
            "say with --segmentation which file every subject's label map is"
        )
    scripts = subject / "scripts"
    stopped = listed(scripts / "recon-all.log") and not listed(scripts / "recon-all.done")
    if stopped or listed(scripts / "deep-seg.log"):
        log = "recon-all.log" if stopped else "deep-seg.log"
        return f"its run has not made mri/{wanted} (see scripts/{log}); finish it"
    return None
