"""Pictures of a case: the scan, its reference, and what teacher, student and control made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import NDArray

from segdistill.drawing import colours, colours_by_code, overlaid, to_ras
from segdistill.evaluation.members import Member
from segdistill.evaluation.summary import case_scores
from segdistill.volume import Volume

_DIFFER = "teacher vs. student"
_RED = (1.0, 0.2, 0.2)
_MARGIN_MM = 10.0
_WORST = {"worst": "lowest", "second_worst": "second lowest", "third_worst": "third lowest"}
_VEIL = 0.6  # how much of a voxel's colour is the structure's, the rest is the scan


@dataclass(frozen=True)
class Pick:
    """A case chosen for a picture, and the rule that chose it."""

    case: str
    rule: str


def shown_members(family: Sequence[Member]) -> tuple[Member, ...]:
    """The teacher, the student of median size (the smaller of two), and its control if there is one."""
    teacher = next(member for member in family if member.role == "teacher")
    students = [member for member in family if member.role == "student"]
    if not students:
        return (teacher,)
    student = students[len(students) // 2]
    control = [m for m in family if m.role == "control" and m.width == student.width]
    return (teacher, student, *control[:1])


def pick_cases(card: pd.DataFrame, member: Member) -> dict[str, Pick]:
    """The ``typical`` case of a member and, as far as there are some, its worst ones, by its Dice alone.

    Typical: the median test case of the sites that took part in training (the lower one of two). Worst,
    second and third worst: the lowest of all test cases, held-out sites included.
    """
    cases = case_scores(card).query("model == @member.name").sort_values(["dice", "case"])
    seen = cases[~cases["held_out"]]["case"].tolist()
    picks = {
        "typical": Pick(
            seen[(len(seen) - 1) // 2],
            f"median Dice of {member.name} on the sites seen in training",
        )
    }
    for case, (kind, place) in zip(cases["case"], _WORST.items(), strict=False):
        picks[kind] = Pick(case, f"{place} Dice of {member.name} on any test case of any site")
    return picks


def overlay(
    scan: Volume,
    reference: NDArray[Any],
    predictions: Mapping[str, NDArray[Any]],
    dice: Mapping[str, float],
    structures: Mapping[int, str],
) -> Figure:
    """Draw an axial and a coronal plane, in columns: scan, reference, each prediction, disagreement.

    With two predictions or more, the last column marks the voxels in which the first two differ.

    The planes are those in which the reference has most structures, then most labelled voxels. The left
    of a picture is the subject's left.

    Args:
        scan: the scan.
        reference: (X, Y, Z) label codes on its grid.
        predictions: name to label codes on its grid.
        dice: name to the case's mean Dice, shown above the picture.
        structures: label code to name.
    """
    grey, spacing = to_ras(scan.array, scan.affine)
    maps = {"reference": to_ras(reference, scan.affine)[0]}
    maps |= {name: to_ras(labels, scan.affine)[0] for name, labels in predictions.items()}
    truth = maps["reference"]
    differ: NDArray[np.bool_] | None = None
    if len(predictions) > 1:
        first, second = list(predictions)[:2]
        differ = maps[first] != maps[second]
    box = _box(truth, spacing)
    grey, truth = grey[box], truth[box]
    maps = {name: labels[box] for name, labels in maps.items()}
    names = ["scan", *maps]
    if differ is not None:
        differ = differ[box]
        names.append(_DIFFER)
    low, high = np.percentile(grey, (1, 99.5))
    shown = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    tones = colours_by_code(structures)
    with rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": "#e5e7eb"}):
        heights = [shown.shape[1] * spacing[1], shown.shape[2] * spacing[2]]
        width = shown.shape[0] * spacing[0]
        columns = len(names)
        figure = Figure(
            figsize=(9.6, 9.6 / columns * sum(heights) / width + 0.85),
            facecolor="#111111",
            layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.07, wspace=0.0, hspace=0.0),
        )
        grid = figure.subplots(2, columns, squeeze=False, height_ratios=heights)
        for row, axis in enumerate((2, 1)):
            plane = _fullest_plane(truth, axis)
            aspect = spacing[2 if axis == 1 else 1] / spacing[0]
            grey_plane = np.take(shown, plane, axis).T
            base = np.repeat(grey_plane[..., None], 3, axis=2)
            for column, name in enumerate(names):
                picture = base
                if name == _DIFFER and differ is not None:
                    veil = np.take(differ, plane, axis).T[..., None]
                    picture = base * (1 - veil) + np.array(_RED) * veil
                elif name != "scan":
                    picture = overlaid(grey_plane, np.take(maps[name], plane, axis).T, tones, _VEIL)
                axes = grid[row, column]
                axes.imshow(picture, origin="lower", aspect=aspect, interpolation="nearest")
                axes.set_axis_off()
                if row == 0:
                    score = f"\nDice {dice[name]:.3f}" if name in dice else "\n"
                    if name == _DIFFER and differ is not None:
                        score = f"\n{np.count_nonzero(differ) * np.prod(spacing) / 1000:.1f} ml differ"
                    axes.set_title(f"{name}{score}", fontsize=9.5)
        figure.legend(
            handles=[
                Patch(color=tones[code], label=name.replace("_", " "))
                for code, name in structures.items()
            ],
            loc="outside lower center",
            ncols=5,
            fontsize=8.5,
            frameon=False,
            labelcolor="#e5e7eb",
            handlelength=1.0,
        )
    return figure


def colours_of_overlay(structures: int) -> list[tuple[int, int, int]]:
    """At most 256 RGB colours that an overlay needs: greys, pure tones, and tones over greys."""
    tones = colours(structures)
    tones = np.concatenate([tones, [_RED]])
    greys = np.linspace(0, 1, 40)[:, None].repeat(3, axis=1)
    levels = np.linspace(0, 1, max(2, (256 - len(greys) - len(tones)) // len(tones)))
    veiled = (_VEIL * tones[:, None] + (1 - _VEIL) * levels[None, :, None]).reshape(-1, 3)
    found = np.rint(255 * np.concatenate([greys, tones, veiled])[:256]).astype(int)
    return [(int(red), int(green), int(blue)) for red, green, blue in found]


def _box(labels: NDArray[Any], spacing: NDArray[np.float64]) -> tuple[slice, slice, slice]:
    """The labelled part with a margin; everything where nothing is labelled."""
    if not labels.any():
        return slice(None), slice(None), slice(None)
    sides = []
    for axis in range(3):
        other = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(labels.any(axis=other))
        margin = round(_MARGIN_MM / spacing[axis])
        sides.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin))
    return sides[0], sides[1], sides[2]


def _fullest_plane(labels: NDArray[Any], axis: int) -> int:
    """Index of the plane with most structures, then most labelled voxels."""
    planes = np.moveaxis(labels, axis, 0)
    return max(
        range(len(planes)), key=lambda n: (len(np.unique(planes[n])), int(np.count_nonzero(planes[n])))
    )
