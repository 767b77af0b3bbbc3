"""Bring the tables of docs/ablation.md in step with what the studies wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.files import atomic_path, read_json, visible
from tools.readme_table import with_block

PAGE = Path("docs/ablation.md")
NOT_RUN = "*Not run yet.*"
MARKERS = {
    name: (f"<!-- {name}: written by 'make readme', not by hand -->", f"<!-- end of {name} -->")
    for name in ("the ablation", "sites left out")
}


def ablation_lines(summary: Mapping[str, Any]) -> list[str]:
    """The ablation as a Markdown table, a line per width and row, and what the rule chose.

    Args:
        summary: what ``ablation.json`` holds.
    """
    seeds = len(summary["seeds"])
    steps = ", ".join(f"{width}: {count}" for width, count in summary["steps"].items())
    lines = [
        f"Task {summary['task']}, {summary['cases']} validation cases, {seeds} seeds, steps {steps}.",
        "",
        "| student | row | val Dice (sd) | minus control | minus start | s a step | in the teacher |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for line in summary["rows"]:
        spread = "" if line["sd"] is None else f" ({line['sd']:.4f})"
        cells = [
            line["width"],
            line["row"].replace("_", " "),
            f"{line['mean']:.4f}{spread}",
            _difference(line["against_control"]),
            _difference(line["against_start"]),
            f"{line['seconds_per_step']:.3f}",
            f"{line['teacher_share']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", f"{summary['rule']} It chooses **{summary['chosen'].replace('_', ' ')}**."]


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    error = difference["standard_error"]
    sure = "" if error is None else f" \N{PLUS-MINUS SIGN} {100 * error:.2f}"
    better = f"{difference['better']} of {difference['seeds']}"
    return f"{100 * difference['mean']:+.2f}{sure} ({better})"


def left_out_lines(sites: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sites left out as a Markdown table, a line per site and member.

    Args:
        sites: what each ``leave_one_site_out/SITE.json`` holds.
    """
    lines = [
        "| site left out | model | subjects | Dice, with it | Dice, without it | points | HD95, mm |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for site in sites:
        for row in site["members"]:
            by_metric = {entry["metric"]: entry for entry in row["comparisons"]}
            dice, distance = by_metric.get("dice"), by_metric.get("hd95_mm")
            interval = (
                ""
                if dice is None or dice["low"] is None
                else f" ({100 * dice['low']:+.2f} to {100 * dice['high']:+.2f})"
            )
            cells = [
                site["site"],
                row["name"],
                str(site["subjects"]),
                f"{row['dice_full']:.4f}",
                f"{row['dice']:.4f}",
                "" if dice is None else f"{100 * dice['difference']:+.2f}{interval}",
                "" if distance is None else f"{distance['difference']:+.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def with_tables(text: str, reports: Path) -> str:
    """The page with both tables as the files in ``reports`` give them.

    Raises:
        SegdistillError: the page lacks a marker.
    """
    ablation = reports / "ablation.json"
    sites = [read_json(path) for path in visible((reports / "leave_one_site_out").glob("*.json"))]
    blocks = {
        "the ablation": ablation_lines(read_json(ablation)) if ablation.is_file() else [NOT_RUN],
        "sites left out": left_out_lines(sites) if sites else [NOT_RUN],
    }
    for name, lines in blocks.items():
        text = with_block(text, lines, str(PAGE), *MARKERS[name])
    return text


def main() -> None:
    """Rewrite the page in the current folder."""
    task = read_params(Path("params.yaml")).task
    old = PAGE.read_text()
    new = with_tables(old, Path("reports") / task)
    if new != old:
        with atomic_path(PAGE) as partial:
            partial.write_text(new)
    print(f"{PAGE}: {'written from' if new != old else 'in step with'} reports/{task}")


if __name__ == "__main__":
    run_stage(main)
