"""A picture of a label map over its scan, for a person to look at."""

import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from segdistill.drawing import colours_by_code, overlaid, to_ras
from segdistill.files import atomic_path
from segdistill.runtime.plan import Plan
from segdistill.runtime.segment import Segmentation
from segdistill.volume import Volume

_VEIL = 0.6  # how much of a voxel's colour is the structure's, the rest is the scan
_LIGHT, _DARK, _AMBER = "#e5e7eb", "#111111", "#fbbf24"
_WIDTH = 11.0  # inches
_WIDE = 130  # characters of a line above the picture
_NOTE = (
    "R, L: the patient's right and left (radiological convention). Research use, not a medical device."
)
# Each plane: its name, the axis across it, the axes along it, and the letters at its left, right, top
# and bottom. The first axis of RAS runs to the right, the second to the front, the third up; pictures
# run to the patient's left and to the back.
_PLANES = (
    ("axial", 2, (0, 1), "RLAP"),
    ("coronal", 1, (0, 2), "RLSI"),
    ("sagittal", 0, (1, 2), "APSI"),
)


def write_picture(path: Path, scan: Volume, outcome: Segmentation, plan: Plan, title: str) -> None:
    """Draw three planes through the middle of what was segmented, the scan above, its labels below.

    Args:
        path: the PNG; whole or absent.
        scan: the scan.
        outcome: its segmentation.
        plan: of the bundle: codes, names, and for CT the window of intensities.
        title: what the scan is called.
    """
    structures = {entry.code: entry.name for entry in plan.structures}
    figure = draw(scan, outcome, structures, plan.normalisation.clip_hu, title)
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a name in letters the font hasn't
        figure.savefig(partial, format="png", dpi=110)


def draw(
    scan: Volume,
    outcome: Segmentation,
    structures: Mapping[int, str],
    window: tuple[float, float] | None,
    title: str,
) -> Figure:
    """The picture as a figure; see :func:`write_picture`.

    Args:
        scan: the scan.
        outcome: its segmentation.
        structures: label code to name.
        window: what is darker than its first intensity is black, and brighter than its second white;
            None: as the planes' own intensities say.
        title: what the scan is called.
    """
    grey, spacing = to_ras(scan.array, scan.affine)
    labels, _ = to_ras(outcome.labels, scan.affine)
    middle = _middle(labels)
    planes = [_plane(grey, axis, middle[axis]) for _, axis, _, _ in _PLANES]
    low, high = np.percentile(np.concatenate([plane.ravel() for plane in planes]), (1, 99.5))
    if window:
        low, high = max(low, window[0]), min(high, window[1])
    tones = colours_by_code(structures)
    extents = [[grey.shape[n] * spacing[n] for n in along] for _, _, along, _ in _PLANES]
    tallest, wide = max(up for _, up in extents), sum(across for across, _ in extents)
    lines = [title, *textwrap.wrap(str(outcome.quality).replace("_", " "), _WIDE)]
    rows = -(-len(structures) // 5)
    with rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": _LIGHT}):
        # Placed by hand: matplotlib's own layout takes longer than all the rest.
        top, bottom = 0.3 + 0.18 * len(lines), 0.4 + 0.2 * rows
        height = 2 * _WIDTH * tallest / wide + top + bottom
        figure = Figure(figsize=(_WIDTH, height), facecolor=_DARK)
        grid = figure.subplots(
            2,
            3,
            squeeze=False,
            width_ratios=[across for across, _ in extents],
            gridspec_kw={"left": 0.005, "right": 0.995, "wspace": 0.01, "hspace": 0.01}
            | {"bottom": bottom / height, "top": 1 - top / height},
        )
        for column, (name, axis, along, letters) in enumerate(_PLANES):
            base = np.clip((planes[column] - low) / max(high - low, 1e-6), 0, 1)
            codes = _plane(labels, axis, middle[axis])
            for row, veil in enumerate((0.0, _VEIL)):
                axes = grid[row, column]
                axes.imshow(
                    overlaid(base, codes, tones, veil),
                    origin="lower",
                    aspect=spacing[along[1]] / spacing[along[0]],
                    interpolation="nearest",
                )
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(name, fontsize=9.5)
                for letter, (x, y) in zip(
                    letters, ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)), strict=True
                ):
                    axes.text(
                        *(x, y, letter),
                        transform=axes.transAxes,
                        ha={0.02: "left", 0.98: "right"}.get(x, "center"),
                        va={0.98: "top", 0.02: "bottom"}.get(y, "center"),
                        fontweight="bold",
                    )
        figure.suptitle(
            "\n".join(lines),
            y=1 - 0.06 / height,
            va="top",
            fontsize=9.5,
            color=_AMBER if outcome.quality.verdict == "check" else _LIGHT,
            parse_math=False,
        )
        figure.legend(
            handles=[
                Patch(
                    color=tones[code],
                    label=f"{name.replace('_', ' ')} {outcome.volumes_ml[name]:.1f} ml",
                )
                for code, name in structures.items()
            ],
            loc="lower center",
            ncols=5,
            fontsize=8.5,
            frameon=False,
            labelcolor=_LIGHT,
            handlelength=1.0,
            title=_NOTE,
            title_fontsize=8,
        )
    return figure


def _plane(array: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """A plane of an array in RAS as it is drawn from below up, patient's right or front at the left."""
    plane: NDArray[Any] = np.take(array, index, axis)[::-1].T
    return plane


def _middle(labels: NDArray[Any]) -> tuple[int, int, int]:
    """The median place of what is labelled, along each axis; the scan's own middle where nothing is."""
    found = []
    for axis in range(3):
        counts = np.count_nonzero(labels, axis=tuple(other for other in range(3) if other != axis))
        total = np.cumsum(counts)
        half = total[-1] / 2
        found.append(int(np.searchsorted(total, half)) if half else len(total) // 2)
    return found[0], found[1], found[2]
