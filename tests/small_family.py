"""A root with a small made-up family, as the pipeline leaves it before it is registered."""

from dataclasses import replace
from pathlib import Path

import yaml

from segdistill.family import Figures, Role, write_family
from segdistill.sites.manifest import Case, Site
from tests.figures import TEACHER, VERDICT
from tests.knobs import write_params
from tests.onnx_models import ball_file, threshold_bundle

TASK = "brain_mri"
MEMBERS: tuple[tuple[str, Role, float, float], ...] = (
    ("teacher", "teacher", 1.0, 120.0),
    ("student-x4", "student", 0.25, 100.0),
    ("control-x4", "control", 0.25, 80.0),
)


def row(name: str, role: Role, width: float, dice: float = 0.9) -> Figures:
    """A row of family.json."""
    return replace(
        TEACHER,
        name=name,
        role=role,
        width=width,
        parameters=int(1e6 * width**2),
        macs=int(1e9 * width**2),
        dice=dice,
        dice_held_out_site=dice - 0.05,
        retention=dice / 0.9,
        cpu_seconds=4.0 * width,
        verdict=replace(VERDICT, retention_low=dice / 0.9 - 0.001, non_inferior=True)
        if role == "student"
        else None,
    )


def make_root(root: Path, max_body_mb: float = 1.0, tuning_cases: int = 0) -> Path:
    """Write bundles, family.json, two sites, dvc.lock and params.yaml of a family of three."""
    for name, role, width, threshold in MEMBERS:
        threshold_bundle(
            root / "bundles" / TASK / name,
            (threshold,),
            provenance={"name": name, "role": role, "width": width},
        )
    dices = {"teacher": 0.9, "student-x4": 0.89, "control-x4": 0.86}
    write_family(
        root / "reports" / TASK / "family.json",
        [row(name, role, width, dices[name]) for name, role, width, _ in MEMBERS],
    )
    for site, held_out in (("site_a", False), ("site_e", True)):
        case = Case(f"{site}-001", f"{site}-s1", "images/a.nii", None, "test")
        folder = root / "data" / "sites" / TASK / site
        cases = [case]
        if tuning_cases and not held_out:
            cases.append(Case(f"{site}-002", f"{site}-s2", "images/b.nii", None, "val"))
            ball_file(folder / "images" / "b.nii")
        note = "SIMULATED: made by a program from one averaged anatomy."
        Site(site, TASK, True, held_out, "test", {1: "structure_1"}, tuple(cases), note).write(folder)
    lock = {
        "schema": "2.0",
        "stages": {
            f"site@{site}": {
                "cmd": "true",
                "outs": [
                    {"path": f"data/sites/{TASK}/{site}", "hash": "md5", "md5": f"{digit * 32}.dir"}
                ],
            }
            for site, digit in (("site_a", "a"), ("site_e", "e"))
        },
    }
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    write_params(
        root / "params.yaml",
        task=TASK,
        tuning={"cases": tuning_cases, "mean_loss": 0.002, "structure_loss": 0.005, "overlaps": []},
        serving={"threads": 1, "max_body_mb": max_body_mb},
    )
    return root
