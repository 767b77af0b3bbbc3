"""Label maps of people without their scans: a folder of NIfTI or MGZ files, one person each."""

from pathlib import Path

from segdistill.files import visible
from segdistill.sites.imports.scan import Found, Problem, Scan
from segdistill.volume import Volume

ENDINGS = (".nii.gz", ".nii", ".mgz")

_CUBE = 0.01  # share of its longest edge by which a cube's edges may differ


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


def not_cubes(labels: Volume) -> str | None:
    """Why scans can't be rendered from a label map, if its voxels aren't cubes; else None."""
    sizes = labels.spacing_mm
    if max(sizes) - min(sizes) <= _CUBE * max(sizes):
        return None
    edges = " x ".join(f"{size:g}" for size in sizes)
    return f"its voxels are {edges} mm; resample it to cubes, with nearest neighbours"
