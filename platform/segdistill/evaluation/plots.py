"""The figures of the report, each from the tables alone.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from segdistill.evaluation.compare import Comparison
from segdistill.evaluation.members import Member
from segdistill.family import Figures
from segdistill.files import atomic_path

ROLE_COLOUR = {"teacher": "#222222", "student": "#0072B2", "control": "#D55E00"}
ROLE_MARKER = {"teacher": "D", "student": "o", "control": "^"}
STEP_COLOUR = ("#999999", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#E69F00", "#CC79A7")
_QUIET = "#6b7280"
_TITLE_WIDTH = 18  # characters of a small panel's title in one line
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#4b5563",
    "ytick.color": "#374151",
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def save(
    figure: Figure, path: Path, dpi: int = 150, palette: Sequence[tuple[int, int, int]] = ()
) -> None:
    """Write a figure as a small PNG: no metadata, and a palette, of its own choice or the given one."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    picture = Image.open(buffer).convert("RGB")
    if palette:
        sample = Image.new("P", (1, 1))
        sample.putpalette([channel for colour in palette for channel in colour])
        picture = picture.quantize(palette=sample, dither=Image.Dither.NONE)
    else:
        picture = picture.quantize(128, dither=Image.Dither.NONE)
    with atomic_path(path) as partial:
        picture.save(partial, format="png", optimize=True)


def pareto(table: Sequence[Figures], family: Sequence[Member]) -> Figure:
    """Dice over CPU seconds of a scan; the area of a mark follows the number of parameters."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes: Axes = figure.subplots()
        largest = max(row.parameters for row in table)
        by_name = {row.name: row for row in table}
        chain = [row for row in table if row.role in ("teacher", "student")]
        axes.plot(
            [row.cpu_seconds for row in chain],
            [row.dice for row in chain],
            color=ROLE_COLOUR["student"],
            linewidth=1.2,
            linestyle=(0, (4, 3)),
            alpha=0.6,
            zorder=1,
        )
        for member in family:
            row = by_name[member.name]
            size = 40 + 260 * (row.parameters / largest) ** 0.5
            axes.scatter(
                row.cpu_seconds,
                row.dice,
                s=size,
                color=ROLE_COLOUR[member.role],
                marker=ROLE_MARKER[member.role],
                edgecolor="white",
                linewidth=1,
                zorder=3,
            )
            # A student's label goes up and left of its mark, its control's down and right: they cost the
            # same, and smaller ones lie close together.
            above = member.role != "control"
            reach = 3 + size**0.5 / 3
            axes.annotate(
                f"{member.name}  ({_millions(row.parameters)})",
                (row.cpu_seconds, row.dice),
                xytext=(-reach if above else reach, reach if above else -reach),
                textcoords="offset points",
                ha="right" if above else "left",
                va="bottom" if above else "top",
                fontsize=8.5,
                color=ROLE_COLOUR[member.role],
            )
        axes.set_xscale("log")
        _plain_seconds(axes)
        axes.margins(x=0.35, y=0.2)
        axes.grid()
        axes.set_xlabel("CPU seconds for a whole scan, reading to writing (log scale; left is cheaper)")
        axes.set_ylabel("Dice, sites seen in training")
        axes.set_title("Accuracy against cost")
    return figure


def cpu_by_step(steps: pd.DataFrame, table: Sequence[Figures], family: Sequence[Member]) -> Figure:
    """Stacked bars of a scan's CPU seconds by pipeline step; beside them the median of whole scans."""
    whole = {row.name: row.cpu_seconds for row in table}
    order = list(dict.fromkeys(steps["step"]))
    wide = steps.pivot_table(index="model", columns="step", values="cpu_s", sort=False)[order]
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(family)), layout="constrained")
        axes: Axes = figure.subplots()
        names = [member.name for member in family][::-1]
        left = pd.Series(0.0, index=names)
        for number, step in enumerate(order):
            seconds = wide.loc[names, step]
            axes.barh(
                names,
                seconds,
                left=left,
                height=0.66,
                color=STEP_COLOUR[number % len(STEP_COLOUR)],
                edgecolor="white",
                linewidth=0.5,
                label=step,
            )
            left = left + seconds
        for name in names:
            axes.annotate(
                f"{whole[name]:.2f} s",
                (left[name], name),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color="#374151",
            )
        axes.set_xlabel("CPU seconds per step, median over the timed cases")
        axes.margins(x=0.1)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=len(order),
            fontsize=8.5,
            handlelength=1.0,
            columnspacing=1.1,
        )
    return figure


def dice_by_site(
    sites: pd.DataFrame, cases: pd.DataFrame, family: Sequence[Member], order: Sequence[str]
) -> Figure:
    """Mean Dice per site, held-out sites apart on the right; a thin line spans the site's cases."""
    held_out = dict(zip(sites["site"], sites["held_out"], strict=True))
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes: Axes = figure.subplots()
        place: dict[str, float] = {}
        position = 0.0
        for site in order:
            position += 0.5 if held_out[site] and not any(held_out[s] for s in place) else 0.0
            place[site] = position
            position += 1.0
        shades = _shades(family)
        step = 0.78 / max(len(family), 2)
        for number, member in enumerate(family):
            offset = (number - (len(family) - 1) / 2) * step
            own = sites[sites["model"] == member.name]
            means = dict(zip(own["site"], own["dice"].astype(float), strict=True))
            each = cases[cases["model"] == member.name].groupby("site")["dice"]
            x = [place[site] + offset for site in order]
            axes.vlines(
                x,
                [each.min()[site] for site in order],
                [each.max()[site] for site in order],
                color=shades[member.name],
                linewidth=1.4,
                alpha=0.45,
            )
            axes.scatter(
                x,
                [means[site] for site in order],
                s=34,
                color=shades[member.name],
                marker=ROLE_MARKER[member.role],
                edgecolor="white",
                linewidth=0.6,
                zorder=3,
                label=member.name,
            )
        counts = sites.drop_duplicates("site").set_index("site")["cases"]
        axes.set_xticks(
            [place[site] for site in order],
            [f"{site}\n{counts[site]} case{'' if counts[site] == 1 else 's'}" for site in order],
        )
        apart = [place[site] for site in order if held_out[site]]
        if apart:
            axes.axvspan(min(apart) - 0.6, max(apart) + 0.6, color="#f3f4f6", zorder=0)
            axes.text(
                sum(apart) / len(apart),
                1.0,
                "never trained on",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=_QUIET,
            )
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y")
        axes.set_ylabel("Dice, mean over structures")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=4,
            fontsize=8.5,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    return figure


def differences(comparisons: Sequence[Comparison]) -> Figure:
    """Paired differences in Dice points with their intervals, students against control and teacher."""
    comparisons = [c for c in comparisons if c.metric == "dice"]
    pairs = list(dict.fromkeys((c.name, c.against) for c in comparisons))
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 1.3 + 0.5 * len(pairs)), layout="constrained")
        axes: Axes = figure.subplots()
        for number, pair in enumerate(pairs):
            for comparison in comparisons:
                if (comparison.name, comparison.against) != pair:
                    continue
                seen = comparison.sites == "seen"
                y = -number + (0.13 if seen else -0.17)
                colour = (
                    ROLE_COLOUR["teacher"] if comparison.against == "teacher" else ROLE_COLOUR["student"]
                )
                low, high = comparison.low, comparison.high
                if low is not None and high is not None:
                    axes.hlines(y, 100 * low, 100 * high, color=colour, linewidth=2, alpha=0.6)
                axes.scatter(
                    100 * comparison.difference,
                    y,
                    s=38,
                    color=colour if seen else "white",
                    edgecolor=colour,
                    linewidth=1.4,
                    zorder=3,
                )
                axes.annotate(
                    f"{100 * comparison.difference:+.1f}",
                    (100 * (high if high is not None else comparison.difference), y),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
        axes.axvline(0, color="#9ca3af", linewidth=1)
        axes.set_yticks(
            [-n for n in range(len(pairs))], [f"{name} \N{MINUS SIGN} {other}" for name, other in pairs]
        )
        axes.set_ylim(-max(len(pairs), 1) + 0.5, 0.5)
        axes.margins(x=0.12)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("difference in Dice points, mean over subjects (right: the student is better)")
        axes.set_title("filled: seen sites    hollow: held-out sites", fontsize=8.5, color=_QUIET)
    return figure


def volume_agreement(card: pd.DataFrame, structures: Sequence[str], shown: Sequence[Member]) -> Figure:
    """Bland and Altman's plot per structure: predicted minus reference volume over their mean.

    Every test case of every site is a mark. Lines are a model's mean difference (solid) and where 95% of
    differences lie (mean plus and minus 1.96 standard deviations, dashed), in percent of the mean.
    """
    columns = min(5, len(structures))
    rows = -(-len(structures) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 0.7 + 2.1 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in list(grid.flat)[len(structures) :]:
            axes.set_axis_off()
        for axes, structure in zip(grid.flat, structures, strict=False):
            axes.axhline(0, color="#9ca3af", linewidth=1)
            for member in shown:
                own = card[(card["model"] == member.name) & (card["structure"] == structure)]
                mean = (own["volume_ml"] + own["reference_ml"]) / 2
                percent = 100 * (own["volume_ml"] - own["reference_ml"]) / mean.where(mean > 0)
                colour = ROLE_COLOUR[member.role]
                axes.scatter(
                    mean,
                    percent,
                    s=9,
                    color=colour,
                    marker=ROLE_MARKER[member.role],
                    alpha=0.55,
                    linewidth=0,
                    label=member.name,
                )
                centre, spread = percent.mean(), 1.96 * percent.std()
                axes.axhline(centre, color=colour, linewidth=1.2)
                for edge in (centre - spread, centre + spread):
                    axes.axhline(edge, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_title(fill(structure.replace("_", " "), _TITLE_WIDTH), fontsize=8.5)
            axes.tick_params(labelsize=7.5)
        figure.supxlabel("mean of predicted and reference volume, ml", fontsize=9)
        figure.supylabel("difference, % of that mean", fontsize=9)
        figure.legend(
            *grid.flat[0].get_legend_handles_labels(),
            loc="outside upper left",
            ncols=3,
            fontsize=8.5,
        )
    return figure


def reliability(curves: pd.DataFrame, shown: Sequence[Member]) -> Figure:
    """How often a model is right where it is so sure; on the diagonal it is as sure as it is right."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        axes: Axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1)
        for member in shown:
            own = curves[(curves["model"] == member.name) & (curves["voxels"] > 0)]
            axes.plot(
                own["confidence"],
                own["accuracy"],
                color=ROLE_COLOUR[member.role],
                linewidth=1.4,
                marker=ROLE_MARKER[member.role],
                markersize=4,
                label=member.name,
            )
        axes.set_xlabel("confidence in the winning class")
        axes.set_ylabel("share of voxels that are right")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.grid()
        axes.legend(loc="upper left", fontsize=8.5)
    return figure


def ablation(summary: Mapping[str, Any]) -> Figure:
    """Validation Dice by row of an ablation, a panel per width: a dot per seed, a line at the mean.

    Args:
        summary: what ``ablation.json`` holds.
    """
    widths = summary["widths"]
    order = list(dict.fromkeys(line["label"] for line in summary["rows"]))
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 1.2 + 0.34 * len(order)), layout="constrained")
        grid = figure.subplots(1, len(widths), squeeze=False, sharey=True)
        for axes, width in zip(grid.flat, widths, strict=True):
            for line in (line for line in summary["rows"] if line["width"] == width):
                y = -order.index(line["label"])
                colour = ROLE_COLOUR["control" if line["row"].startswith("control") else "student"]
                axes.scatter(line["scores"], [y] * len(line["scores"]), s=20, color=colour, alpha=0.6)
                axes.vlines(line["mean"], y - 0.3, y + 0.3, color=colour, linewidth=2)
            axes.set_title(width, fontsize=9.5)
            axes.grid(axis="x")
            axes.margins(x=0.1)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        chosen = {line["label"] for line in summary["rows"] if line["row"] == summary["chosen"]}
        grid[0, 0].set_yticks(
            [-n for n in range(len(order))],
            [label + (" *" if label in chosen else "") for label in order],
        )
        figure.supxlabel("Dice on the validation split (a dot per seed, a line at the mean)", fontsize=9)
    return figure


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters / 1e3:.1f} k"


def _plain_seconds(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    label = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(label)
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _shades(family: Sequence[Member]) -> dict[str, str]:
    """A colour per member: its role's, lighter as the width shrinks."""
    from matplotlib.colors import to_hex, to_rgb

    shades = {}
    for role in ROLE_COLOUR:
        own = [member for member in family if member.role == role]
        for number, member in enumerate(own):
            fade = 0.55 * number / max(len(own) - 1, 1)
            red, green, blue = (channel + (1 - channel) * fade for channel in to_rgb(ROLE_COLOUR[role]))
            shades[member.name] = to_hex((red, green, blue))
    return shades
