"""bench.json as a page and a plot: ``python -m benchmarks.page`` writes them again."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.families import WIDTHS
from benchmarks.growth import VOXEL_MM
from segdistill.evaluation.plots import STEP_COLOUR, save
from segdistill.files import atomic_path, read_json
from segdistill.runtime.segment import STEPS
from segdistill.runtime.setting import Precision, Setting

PAGE = Path("docs/benchmarks.md")
Row = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """What an earlier run wrote; empty if none did."""
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def write(results: Row, out: Path) -> None:
    """Write the page, and the plot beside ``bench.json``."""
    template = jinja2.Template(Path(__file__).with_suffix(".md.j2").read_text(), trim_blocks=True)
    paper, trained = results.get("paper_scale"), results.get("trained")
    text = template.render(
        machine=results["machine"],
        voxel_mm=VOXEL_MM,
        cold_start=results.get("cold_start"),
        paper=paper and _paper_scale(paper),
        trained=trained and _trained(trained),
    )
    with atomic_path(PAGE) as partial:
        partial.write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")
    if trained:
        save(_steps(_with_steps(trained["rows"])), out / "cpu_by_step.png")


def _paper_scale(body: Row) -> dict[str, str]:
    rows = body["rows"]
    base = _find(rows, "teacher", "nnU-Net")["cpu_seconds"]
    costs = ["scans", "s", "CPU s", "peak MB"]
    compared = ["teacher in nnU-Net", "same in nnU-Net", "of the teacher's CPU", "around the network"]
    head = ["member", "pipeline", *costs, *compared]
    table = []
    for row in rows:
        own = _find(rows, row["member"], "nnU-Net")["cpu_seconds"]
        times = (f"{there / row['cpu_seconds']:.1f} x" for there in (base, own))
        name = [row["member"], row["pipeline"]]
        table.append([*name, str(row["scans"]), *_costs(row), *times, *_shares(row, rows)])
    same = [row for row in rows if "same_labels_as_nnunet" in row]
    return {
        "rows": _markdown(head, table),
        "same": ", ".join(f"{row['member']} {row['same_labels_as_nnunet']:.3%}" for row in same),
        "operations": _operations(body["operations"]),
    }


def _trained(body: Row) -> dict[str, str]:
    rows = body["rows"]
    table = [[row["member"], row["pipeline"], *_costs(row), *_shares(row, rows)] for row in rows]
    head = ["member", "pipeline", "s", "CPU s", "peak MB", "of the teacher's CPU", "around the network"]
    tuned = []
    for name in (name for name in WIDTHS if name in body["tunings"]):
        tuning = body["tunings"][name]
        chosen = next(row for row in tuning["rows"] if row["setting"] == tuning["choice"])
        worst = f"{chosen['worst_structure'].replace('_', ' ')} {100 * chosen['worst_change']:+.2f}"
        change = f"{100 * chosen['dice_change']:+.2f}"
        tuned.append([name, str(Setting.from_json(tuning["choice"], name)), change, worst])
    ways = []
    for row in body["tunings"]["student-x4"]["rows"]:
        if "refused" in row:  # not something that this machine can do
            continue
        lost = f"{100 * row['dice_change']:+.2f}" + ("" if row["within"] else ", refused")
        ways.append([str(Setting.from_json(row["setting"], "way")), *_costs(row), lost])
    stepped = _with_steps(rows)
    grown = [
        [" x ".join(map(str, row["shape"])), *_costs(row), f"{row['predicted_mb']:,}"]
        for row in body["growth"]["rows"]
    ]
    packed = [
        [row["what"], row["library"], str(row["level"] or ""), f"{row['kB']:,}", f"{row['cpu_ms']:.0f}"]
        for row in body["packing"]
    ]
    return {
        "rows": _markdown(head, table),
        "tuned": _markdown(["member", "tuned to", "Dice", "worst structure"], tuned),
        "cases": body["tunings"]["student-x4"]["cases"],
        "ways": _markdown(["way", "s", "CPU s", "peak MB", "Dice"], ways),
        "steps": _markdown(
            ["step", *map(_name, stepped)],
            [[step, *(f"{1000 * row['cpu_by_step'][step]:.0f}" for row in stepped)] for step in STEPS],
        ),
        "setting": body["growth"]["setting"],
        "growth": _markdown(["voxels", "s", "CPU s", "peak MB", "predicted MB"], grown),
        "operations": _operations(body["operations"]),
        "packing": _markdown(["", "library", "level", "kB", "CPU ms"], packed),
    }


def _shares(row: Row, rows: Sequence[Row]) -> list[str]:
    """CPU time against the teacher's in the same pipeline, and the share of it around the network."""
    teacher = _find(rows, "teacher", row["pipeline"])["cpu_seconds"]
    steps = row["cpu_by_step"]
    return [
        "" if row["member"] == "teacher" else f"{row['cpu_seconds'] / teacher - 1:.1%}",
        f"{1 - steps['network'] / sum(steps.values()):.0%}" if steps else "",
    ]


def _operations(body: Row) -> str:
    members = [name for name in WIDTHS if name in next(iter(body.values()))]
    table = []
    for precision in (precision for precision in get_args(Precision) if precision in body):
        own = body[precision]
        speeds = [own[name]["operations_per_second"] for name in members]
        shares = [f"{speed / 1e9:.0f} ({speed / own['machine']:.0%})" for speed in speeds]
        table.append([precision, f"{own['machine'] / 1e9:.0f}", *shares])
    return _markdown(["precision", "matrix products", *members], table)


def _steps(rows: Sequence[Row]) -> Figure:
    with rc_context({"font.family": "DejaVu Sans", "font.size": 9.5}):
        figure = Figure(figsize=(8.4, 0.9 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        left = [0.0] * len(rows)
        places = list(range(len(rows), 0, -1))
        for step, colour in zip(STEPS, STEP_COLOUR, strict=True):
            widths = [row["cpu_by_step"][step] for row in rows]
            axes.barh(places, widths, left=left, color=colour, label=step.replace("_", " "))
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(places, list(map(_name, rows)))
        axes.set_xlabel("CPU seconds a scan")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(frameon=False, loc="lower right", fontsize=8.5)
    return figure


def _with_steps(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["cpu_by_step"]]


def _name(row: Row) -> str:
    return f"{row['member']}, {row['pipeline'].removeprefix('ours, ')}"


def _costs(row: Row) -> list[str]:
    return [f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['peak_rss_mb']:,.0f}"]


def _find(rows: Sequence[Row], member: str, pipeline: str) -> Row:
    return next(row for row in rows if (row["member"], row["pipeline"]) == (member, pipeline))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column to the left, the others to the right."""
    lines = [head, [":--", *("--:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    folder = Path("reports/benchmarks")
    write(read(folder / "bench.json"), folder)
