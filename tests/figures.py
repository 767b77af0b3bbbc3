"""Rows of family.json, made up."""

from dataclasses import replace
from typing import Any

from segdistill.family import Figures, Verdict

VERDICT = Verdict(
    retention_low=0.98012,
    margin=0.013,
    confidence=0.95,
    non_inferior=False,
    beats_control=True,
    better_in=("dice",),
    worst_structure="basal_ganglia",
    worst_structure_loss=0.0321,
    worst_site="site_c",
    worst_site_loss=0.0154,
)
TEACHER = Figures(
    name="teacher",
    role="teacher",
    width=1.0,
    parameters=5_000_000,
    macs=1_000_000_000,
    dice=0.8875,
    dice_held_out_site=0.75,
    nsd=0.9,
    nsd_held_out_site=0.8,
    hd95_mm=2.345,
    hd95_mm_held_out_site=3.0,
    retention=1.0,
    retention_held_out_site=1.0,
    cases=12,
    cases_held_out_site=12,
    structures_missed=0,
    ece=0.05,
    cpu_seconds=4.0,
    cpu_seconds_network=3.0,
    wall_seconds=2.0,
    peak_rss_mb=400.0,
    parameter_reduction=0.0,
    cpu_reduction=0.0,
    verdict=None,
)


def student(**changes: Any) -> Figures:
    """A student of a quarter of the teacher's width; without a figure for a held-out site."""
    own = {
        "name": "student-x4",
        "role": "student",
        "width": 0.25,
        "parameters": 312_500,
        "dice_held_out_site": None,
        "retention": 0.98765,
        "cpu_seconds": 1.0,
        "verdict": VERDICT,
    }
    return replace(TEACHER, **(own | changes))


def control(**changes: Any) -> Figures:
    """The student's control."""
    return student(**({"name": "control-x4", "role": "control", "verdict": None} | changes))
