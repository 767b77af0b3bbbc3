"""Bring the results block of README.md in step with what the evaluation wrote."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segdistill.files import SegdistillError, atomic_path, read_json

START = "<!-- family table: written by 'make readme', not by hand -->"
END = "<!-- end of the family table -->"
_HEAD = (
    ("member", "parameters", "Dice", "Dice, unseen site", "NSD", "HD95, mm", "retention", "CPU s"),
    (":--", "--:", "--:", "--:", "--:", "--:", "--:", "--:"),
)

Row = Mapping[str, Any]


def results(reports: Path) -> list[str]:
    """The lines of the block, from ``family.json`` and ``comparisons.json`` in ``reports``."""
    family, comparisons = (read_json(reports / name) for name in ("family.json", "comparisons.json"))
    return [
        *family_lines(family),
        "",
        *verdict_lines(family),
        "",
        *comparison_lines(family, comparisons),
    ]


def family_lines(family: Sequence[Row]) -> list[str]:
    """The family as a Markdown table, one line per member, in the order of ``family.json``.

    The first member is the teacher; beside parameters and CPU seconds stands the share it is saved.
    """
    rows = [*_HEAD, *(_cells(member, family[0]) for member in family)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cells(member: Row, teacher: Row) -> tuple[str, ...]:
    def shown(key: str, how: str) -> str:
        value = member[key]
        return "none" if value is None else format(value, how)

    def saved(key: str) -> str:
        return "" if member is teacher else f" ({member[key] / teacher[key] - 1:+.1%})"

    return (
        str(member["name"]),
        shown("parameters", ",") + saved("parameters"),
        shown("dice", ".4f"),
        shown("dice_unseen_site", ".4f"),
        shown("nsd", ".4f"),
        shown("hd95_mm", ".2f"),
        shown("retention", ".2%"),
        shown("cpu_seconds", ".2f") + saved("cpu_seconds"),
    )


def verdict_lines(family: Sequence[Row]) -> list[str]:
    """What is concluded about each student, with the structure and the site on which it loses most."""
    lines = []
    for row in family:
        if row["role"] != "student" or row["retention_low"] is None:
            continue
        shown = "" if row["non_inferior"] else "not shown to be "
        structure = row["worst_structure"].replace("_", " ")
        lines.append(
            f"- {row['name']}: {shown}non-inferior to the teacher (retention at least "
            f"{row['retention_low']:.2%} with the whole interval); loses most in {structure} "
            f"({-100 * row['worst_structure_loss']:+.1f} points) and on {row['worst_site']} "
            f"({-100 * row['worst_site_loss']:+.1f})"
        )
    return lines


def comparison_lines(family: Sequence[Row], comparisons: Sequence[Row]) -> list[str]:
    """What distillation added: each student against its control on the sites seen in training."""
    controls = {row["name"] for row in family if row["role"] == "control"}
    lines = []
    for pair in comparisons:
        if pair["against"] not in controls or pair["sites"] != "seen" or pair["metric"] != "dice":
            continue
        sure = (
            ""
            if pair["low"] is None
            else f" ({pair['confidence']:.0%} interval {pair['low']:+.4f} to {pair['high']:+.4f},"
            f" Wilcoxon p = {pair['p_value']:.2g})"
        )
        lines.append(
            f"- {pair['name']} minus {pair['against']}, paired: {pair['difference']:+.4f} Dice{sure}; "
            f"higher on {pair['better']} of {pair['subjects']} subjects"
        )
    return lines


def with_block(
    text: str, lines: Sequence[str], source: str = "README.md", opening: str = START, closing: str = END
) -> str:
    """``text`` with what stands between the two markers replaced by ``lines``.

    Raises:
        SegdistillError: the markers are missing, repeated or in the wrong order.
    """
    before, start, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not start or not end or opening in after or closing in after:
        raise SegdistillError(
            f"{source}: it must hold, once and in this order, {opening} and {closing}."
        )
    return "\n".join([before + opening, *lines, closing + after])


def main() -> None:
    """Rewrite the block of the README in the current folder."""
    task = yaml.safe_load(Path("params.yaml").read_text())["task"]
    reports = Path("reports") / task
    readme = Path("README.md")
    old = readme.read_text()
    new = with_block(old, results(reports))
    if new != old:
        with atomic_path(readme) as partial:
            partial.write_text(new)
    print(f"README.md: {'written from' if new != old else 'in step with'} {reports / 'family.json'}")


if __name__ == "__main__":
    try:
        main()
    except SegdistillError as error:
        sys.exit(f"error: {error}")
