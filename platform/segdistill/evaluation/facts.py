"""What a reader of the figures must know beside them: on what, with which settings, on which machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from segdistill.evaluation.members import TestSet
from segdistill.evaluation.overlays import Pick


def facts(
    task: str,
    test_set: TestSet,
    *,
    shown: Sequence[str],
    picks: Mapping[str, Pick],
    digests: Mapping[str, str],
    margin: float,
    nsd_tolerance_mm: float,
    confidence: float,
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``evaluation.json``.

    Args:
        task: the task's name.
        test_set: the cases.
        shown: the members of the pictures.
        picks: the cases of the overlays, in order, by the stem of their picture's name.
        digests: bundle digest by member.
        margin: of non-inferiority, a share of the teacher's Dice.
        nsd_tolerance_mm: of NSD, mm.
        confidence: of the intervals.
        machine: see :func:`~segdistill.evaluation.machine.describe_machine`.
    """
    return {
        "task": task,
        "cases": len(test_set.cases),
        "unlabelled": test_set.unlabelled,
        "sites": list(test_set.sites),
        "simulated": list(test_set.simulated),
        "held_out": list(test_set.held_out),
        "notes": list(test_set.notes),
        "structures": list(test_set.structures.values()),
        "shown": list(shown),
        "picks": [{"kind": kind, **asdict(pick)} for kind, pick in picks.items()],
        "digests": dict(digests),
        "margin": margin,
        "nsd_tolerance_mm": nsd_tolerance_mm,
        "confidence": confidence,
        "machine": dict(machine),
    }
