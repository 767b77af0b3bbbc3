"""The plan of an imported teacher, which stands where the pipeline would make one."""

from collections.abc import Sequence
from pathlib import Path

from segdistill.files import SegdistillError, digests_of
from segdistill.runtime.plan import PLAN, Plan
from segdistill.shown import command
from segdistill.sites.manifest import Site


def ready_plan(folder: Path, sites: Sequence[Site], task: str) -> Plan:
    """The plan of an imported teacher, for sites whose labels mean what its outputs mean.

    Args:
        folder: what ``segdistill import-nnunet`` wrote.
        sites: all sites of the task.
        task: the task's name.

    Raises:
        SegdistillError: no such folder; or the plan is of another task or label protocol, or has other
            structures.
    """
    _must_be_there(folder)
    plan = Plan.read(folder / PLAN)
    ours = {entry.code: entry.name for entry in plan.structures}
    wrong = None
    if plan.task != task:
        wrong = f"is of the task {plan.task}, not {task}. Import again with {command('--task', task)}"
    for site in sites:
        if plan.label_protocol != site.label_protocol:
            wrong = wrong or (
                f"follows the label protocol {plan.label_protocol}, site {site.site} follows "
                f"{site.label_protocol}. If they are the same, import again with "
                f"{command('--label-protocol', site.label_protocol)}"
            )
        if ours != site.structures:
            wrong = wrong or (
                f"has the structures {ours}, site {site.site} has {site.structures}. If only names "
                "differ, rename the labels in the results folder's dataset.json and import again"
            )
    if wrong:
        raise SegdistillError(f"{folder / PLAN}: {wrong}.")
    return plan


def ready_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an imported teacher, by its path in the folder.

    Args:
        folder: what ``segdistill import-nnunet`` wrote.

    Raises:
        SegdistillError: no such folder.
    """
    _must_be_there(folder)
    return digests_of(folder)


def _must_be_there(folder: Path) -> None:
    if not (folder / PLAN).is_file():
        raise SegdistillError(
            f"{folder}: no imported teacher, though teacher.ready in params.yaml names it. Set that to "
            f"null, or make it: {command('segdistill', 'import-nnunet', 'RESULTS', '--out', folder)}"
        )
