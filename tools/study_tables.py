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
    """The ablation as a Markdown table, a line per width, row and budget, and what the rule chose.

    Args:
        summary: what ``ablation.json`` holds.
    """
    seeds = len(summary["seeds"])
    lines = [
        f"Task {summary['task']}, {summary['cases']} validation cases of {summary['subjects']} "
        f"subjects, {seeds} seeds.",
        *(
            [f"**Not finished: {summary['unfinished']} runs are missing, nothing is chosen yet.**"]
            if summary["unfinished"]
            else []
        ),
        *(f"Left out: {row.replace('_', ' ')}, as {why}." for row, why in summary["left_out"].items()),
        "",
        "| student | row | steps | min | val Dice (sd) | minus control | minus control until flat | "
        "minus start |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for line in summary["rows"]:
        spread = "" if line["sd"] is None else f" ({line['sd']:.4f})"
        cells = [
            line["width"],
            line["label"],
            f"{line['steps']:,}",
            f"{line['minutes']:.1f}",
            f"{line['mean']:.4f}{spread}",
            _difference(line["against_control"]),
            _difference(line["against_control_plateau"]),
            _difference(line["against_start"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if chosen := summary["chosen"]:
        lines += ["", f"{summary['rule']} It chooses **{chosen.replace('_', ' ')}**."]
    return lines


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    low, high = difference["low"], difference["high"]
    sure = "" if low is None else f" ({100 * low:+.2f} to {100 * high:+.2f})"
    return f"{100 * difference['mean']:+.2f}{sure}"


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
