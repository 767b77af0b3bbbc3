"""Label maps of people without their scans: a folder of NIfTI or MGZ files, one person each."""

from pathlib import Path

from segdistill.files import visible
from segdistill.sites.imports.scan import Found, Problem, Scan

ENDINGS = (".nii.gz", ".nii", ".mgz")


def find_label_maps(folder: Path) -> Found:
    """Find the label maps of a folder; each file is a person, named by the file."""
    scans: list[Scan] = []
    problems: list[Problem] = []
    for path in visible(folder.iterdir()):
        ending = next((end for end in ENDINGS if path.name.endswith(end)), None)
        if ending is not None:
            name = path.name.removesuffix(ending)
            scans.append(Scan(name, name, None, path))
        elif path.is_file():
            problems.append(Problem(path.name, f"is no label map: its name ends in none of {ENDINGS}"))
    return Found(tuple(scans), tuple(problems))
