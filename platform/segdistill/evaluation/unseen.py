"""A real scan that no training saw, through the pipeline that serves, against what is known about it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from segdistill.drawing import PALETTE, to_ras
from segdistill.evaluation.members import Member, read_members
from segdistill.evaluation.overlays import shown_members
from segdistill.evaluation.score import write_table
from segdistill.files import SegdistillError, atomic_path, write_json
from segdistill.overlap import dice_by_code
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import Segmentator
from segdistill.sites.unseen import Group, UnseenCase, read_unseen
from segdistill.volume import Volume, grid_difference, read_label_map, read_volume

COLUMNS = ("model", "case", "group", "dice", "volume_ml", "reference_ml")
DECIMALS = {"dice": 5, "volume_ml": 3, "reference_ml": 3}

_VEIL = 0.55  # how much of a voxel's colour is the group's, the rest is the scan
_OUTLINE = "#ff5050"
_COLOURS = (PALETTE[2], *PALETTE[:2], *PALETTE[3:])  # neighbours that are told apart at a glance


@dataclass(frozen=True)
class GroupScore:
    """How well one group of one case was found.

    Attributes:
        group: its name.
        dice: overlap in [0, 1]; NaN where the group is in neither map.
        volume_ml: predicted volume, ml.
        reference_ml: reference volume, ml.
    """

    group: str
    dice: float
    volume_ml: float
    reference_ml: float


def score_groups(
    predicted: NDArray[Any],
    reference: NDArray[Any],
    structures: Mapping[int, str],
    groups: Mapping[str, Group],
    voxel_ml: float,
) -> list[GroupScore]:
    """Compare unions of structures with unions of reference codes, over the whole scan or in a region.

    Args:
        predicted: (X, Y, Z) our label codes.
        reference: (X, Y, Z) codes of the reference, on the same grid.
        structures: our label code to name.
        groups: name to what is compared.
        voxel_ml: volume of a voxel, ml.

    Raises:
        SegdistillError: the shapes differ, or a group names a structure that the model doesn't have.
    """
    if predicted.shape != reference.shape:
        raise SegdistillError(
            f"the predicted label map has shape {predicted.shape}, its reference {reference.shape}; "
            "both must be on the scan's grid."
        )
    scores = []
    for name, group in groups.items():
        mask, truth = group_masks(predicted, reference, structures, group)
        found, true = int(np.count_nonzero(mask)), int(np.count_nonzero(truth))
        (dice,) = dice_by_code(mask.view(np.uint8), truth.view(np.uint8), 1)
        scores.append(GroupScore(name, float(dice), found * voxel_ml, true * voxel_ml))
    return scores


def group_masks(
    predicted: NDArray[Any],
    reference: NDArray[Any],
    structures: Mapping[int, str],
    group: Group,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What the model and the reference say is the group: two (X, Y, Z) masks.

    Raises:
        SegdistillError: the group names a structure that the model doesn't have.
    """
    code_of = {name: code for code, name in structures.items()}
    unknown = sorted(set(group.predicted) - set(code_of))
    if unknown:
        raise SegdistillError(
            f"the unseen scans are compared in {', '.join(unknown)}, which this family doesn't segment: "
            "its structures aren't those of the task's protocol. Train and export the family again."
        )
    mask = np.isin(predicted, [code_of[name] for name in group.predicted])
    truth = np.isin(reference, group.reference)
    if group.region:
        region = np.isin(reference, group.region)
        mask, truth = mask & region, truth & region
    return mask, truth


def check_unseen(
    bundles: Path,
    data: Path,
    out: Path,
    task: str,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Segment every unseen scan with every bundle and write ``out/{unseen.csv,unseen.json,unseen.png}``.

    The picture is of the first case. A task without unseen scans gets the same files, empty.

    Args:
        bundles: ``bundles/TASK``.
        data: ``data/unseen/TASK``, from :func:`~segdistill.sites.unseen.make_unseen`.
        out: ``reports/TASK``.
        task: the task's name.
        progress: told one line per model and case.

    Returns:
        What is in ``unseen.json``.

    Raises:
        SegdistillError: no family, a broken bundle or manifest, or a reference off its scan's grid.
    """
    family, cases = read_members(bundles), read_unseen(data)
    rows: list[dict[str, Any]] = []
    kept: dict[str, NDArray[np.uint8]] = {}
    shown = [member.name for member in shown_members(family) if member.role != "control"]
    pairs = [_read_pair(data, case) for case in cases]
    structures: dict[int, str] = {}
    for member in family:
        segmentator = Segmentator(Bundle.read(member.folder))
        structures = {entry.code: entry.name for entry in segmentator.bundle.plan.structures}
        for case, (scan, reference) in zip(cases, pairs, strict=True):
            labels = segmentator.segment(scan).labels
            voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
            scores = score_groups(labels, reference.array, structures, case.groups, voxel_ml)
            rows += [{"model": member.name, "case": case.case, **vars(score)} for score in scores]
            if case is cases[0] and member.name in shown:
                kept[member.name] = labels
            progress(f"{member.name} on {case.case}")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    body = summarise(table, family, cases, task)
    write_table(out / "unseen.csv", table, DECIMALS)
    write_json(out / "unseen.json", body)
    if cases:
        means = {row["name"]: row["dice"] for row in body["models"]}
        figure = draw(*pairs[0], kept, {name: means[name] for name in kept}, structures, cases[0].groups)
    else:
        figure = Figure(figsize=(6, 1))
        figure.text(0.5, 0.5, f"{task} has no unseen scan", ha="center", va="center")
    with atomic_path(out / "unseen.png") as partial:
        figure.savefig(partial, format="png", dpi=110)
    return body


def _read_pair(data: Path, case: UnseenCase) -> tuple[Volume, Volume]:
    scan, reference = read_volume(data / case.image), read_label_map(data / case.reference)
    if difference := grid_difference(scan, reference):
        raise SegdistillError(
            f"{data / case.reference}: not on the grid of {data / case.image}: {difference}. "
            "Run 'dvc repro unseen_data' again."
        )
    return scan, reference


def summarise(
    table: pd.DataFrame, family: Sequence[Member], cases: Sequence[UnseenCase], task: str
) -> dict[str, Any]:
    """The summary: per model its Dice by group and their mean, a mean over cases of means over groups.

    Args:
        table: the columns of :data:`COLUMNS`.
        family: the order of the models.
        cases: in which groups are averaged, and the notes.
        task: the task's name.
    """
    averaged = {(case.case, name) for case in cases for name, g in case.groups.items() if g.averaged}
    models = []
    for member in family:
        own = table[table["model"] == member.name]
        # An empty list would choose no columns instead of no rows.
        chosen = [pair in averaged for pair in zip(own["case"], own["group"], strict=True)]
        counted = own[np.array(chosen, bool)]
        by_case = counted.groupby("case", sort=False)["dice"].mean()
        by_group = own.groupby("group", sort=False)["dice"].mean()
        models.append(
            {
                "name": member.name,
                "role": member.role,
                "dice": _figure(by_case.mean()),
                "groups": {str(name): _figure(value) for name, value in by_group.items()},
            }
        )
    return {
        "task": task,
        "models": models if cases else [],
        "cases": [
            {
                "case": case.case,
                "note": case.note,
                "groups": {
                    name: {
                        "reference": list(group.reference),
                        "predicted": list(group.predicted),
                        "averaged": group.averaged,
                        "region": list(group.region),
                    }
                    for name, group in case.groups.items()
                },
            }
            for case in cases
        ],
    }


def _figure(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def in_words(body: Mapping[str, Any]) -> list[str]:
    """The summary in lines for a terminal: one per model in the family's order, then the notes."""
    if not body["models"]:
        return [f"{body['task']} has no real scan that no training saw."]
    lines = []
    for row in body["models"]:
        mean = "none" if row["dice"] is None else f"{row['dice']:.3f}"
        each = ", ".join(
            f"{name.replace('_', ' ')} {'none' if value is None else f'{value:.3f}'}"
            for name, value in row["groups"].items()
        )
        lines.append(f"{row['name']}: mean Dice {mean} ({each})")
    single = sorted(
        {
            name.replace("_", " ")
            for case in body["cases"]
            for name, group in case["groups"].items()
            if not group["averaged"]
        }
    )
    if single:
        lines.append(f"Not in the mean: {', '.join(single)}.")
    return lines + [f"{case['case']}: {case['note']}" for case in body["cases"]]


def draw(
    scan: Volume,
    reference: Volume,
    predictions: Mapping[str, NDArray[Any]],
    dice: Mapping[str, float | None],
    structures: Mapping[int, str],
    groups: Mapping[str, Group],
) -> Figure:
    """Axial, coronal and sagittal planes in rows; in columns the scan, then each model's groups.

    The reference's groups are outlined in every column. The planes go through the densest part of the
    reference; the whole scan is shown, so that labels far from it are seen. The left of the axial and
    coronal picture is the subject's left, that of the sagittal one its back.

    Args:
        scan: the scan.
        reference: codes of the reference, on its grid.
        predictions: model to (X, Y, Z) label codes on its grid.
        dice: model to its mean Dice.
        structures: our label code to name.
        groups: those that are averaged are drawn.
    """
    drawn = {name: group for name, group in groups.items() if group.averaged}
    grey, spacing = to_ras(scan.array, scan.affine)
    truths = [
        to_ras(np.isin(reference.array, group.reference), scan.affine)[0] for group in drawn.values()
    ]
    found = {
        model: [
            to_ras(group_masks(labels, reference.array, structures, group)[0], scan.affine)[0]
            for group in drawn.values()
        ]
        for model, labels in predictions.items()
    }
    low, high = np.percentile(grey, (1, 99.5))
    shown = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    colours = [np.array([int(c[n : n + 2], 16) / 255 for n in (1, 3, 5)]) for c in _COLOURS]
    anything = np.any(truths, axis=0)
    columns = ["scan and reference", *found]
    with rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": "#e5e7eb"}):
        figure = Figure(figsize=(3.2 * len(columns), 10.2), facecolor="#111111", layout="constrained")
        grid = figure.subplots(3, len(columns), squeeze=False)
        for row, axis in enumerate((2, 1, 0)):
            area = np.moveaxis(anything, axis, 0).reshape(anything.shape[axis], -1).sum(axis=1)
            plane = int(np.argmax(area))
            across, up = (other for other in range(3) if other != axis)
            base = np.repeat(np.take(shown, plane, axis).T[..., None], 3, axis=2)
            for column, name in enumerate(columns):
                picture = base
                for colour, mask in zip(colours, found.get(name, []), strict=False):
                    veil = _VEIL * np.take(mask, plane, axis).T[..., None]
                    picture = picture * (1 - veil) + colour * veil
                axes = grid[row, column]
                axes.imshow(
                    picture,
                    origin="lower",
                    aspect=spacing[up] / spacing[across],
                    interpolation="nearest",
                )
                for truth in truths:
                    outline = np.take(truth, plane, axis).T
                    if outline.any():
                        axes.contour(outline, [0.5], colors=_OUTLINE, linewidths=0.4)
                axes.set_axis_off()
                if row == 0:
                    value = dice.get(name)
                    score = "" if value is None else f"\nmean Dice {value:.3f}"
                    axes.set_title(f"{name}{score}", fontsize=9.5)
        figure.legend(
            handles=[
                Patch(color=tone, label=name.replace("_", " "))
                for name, tone in zip(drawn, _COLOURS, strict=False)
            ],
            loc="outside lower center",
            ncols=4,
            title="outlines: the reference; colours: the model",
            frameon=False,
            labelcolor="#e5e7eb",
        )
    return figure
