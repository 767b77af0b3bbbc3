"""The bundles that come with the repository: ``released/TASK``, ready without any training."""

from pathlib import Path

from segdistill.files import SegdistillError, subfolders

RELEASED = "released"
#: The repository, where the library is installed from it ('make install'); else a folder without them.
ROOT = Path(__file__).resolve().parents[2]


def released_bundles(root: Path = ROOT) -> dict[str, Path]:
    """The folder of every released bundle, by task."""
    return {folder.name: folder for folder in subfolders(root / RELEASED)}


def released_bundle(task: str, root: Path = ROOT) -> Path:
    """The folder of a task's released bundle.

    Raises:
        SegdistillError: this installation has none.
    """
    found = released_bundles(root)
    if task not in found:
        there = f" (there are: {', '.join(found)})" if found else ""
        raise SegdistillError(
            f"{root / RELEASED / task}: no model of this task comes with this installation{there}. Name "
            "one with --model FOLDER, such as bundles/brain_mri/student-x4 after 'dvc repro'."
        )
    return found[task]
