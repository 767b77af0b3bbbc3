"""Bring the results table of README.md in step with ``reports/TASK/family.json``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segdistill.files import SegdistillError, atomic_path, read_json

START = "<!-- family table: written by 'make readme', not by hand -->"
END = "<!-- end of the family table -->"
_HEAD = (
    (
        "member",
        "parameters",
        "Dice",
        "Dice, unseen site",
        "NSD",
        "HD95, mm",
        "retention",
        "CPU s a scan",
    ),
    (":--", "--:", "--:", "--:", "--:", "--:", "--:", "--:"),
)


def family_lines(family: Sequence[Mapping[str, Any]]) -> list[str]:
    """The family as a Markdown table, one line per member, in the order of ``family.json``."""
    rows = [*_HEAD, *(_cells(member) for member in family)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cells(member: Mapping[str, Any]) -> tuple[str, ...]:
    def shown(key: str, how: str) -> str:
        value = member[key]
        return "none" if value is None else format(value, how)

    return (
        str(member["name"]),
        shown("parameters", ","),
        shown("dice", ".4f"),
        shown("dice_unseen_site", ".4f"),
        shown("nsd", ".4f"),
        shown("hd95_mm", ".2f"),
        shown("retention", ".2%"),
        shown("cpu_seconds", ".2f"),
    )


def with_table(text: str, lines: Sequence[str], source: str = "README.md") -> str:
    """``text`` with what stands between the two markers replaced by ``lines``.

    Raises:
        SegdistillError: the markers are missing, repeated or in the wrong order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in after or END in after:
        raise SegdistillError(f"{source}: it must hold, once and in this order, {START} and {END}.")
    return "\n".join([before + START, *lines, END + after])


def main() -> None:
    """Rewrite the table of the README in the current folder."""
    task = yaml.safe_load(Path("params.yaml").read_text())["task"]
    family = Path("reports") / task / "family.json"
    readme = Path("README.md")
    old = readme.read_text()
    new = with_table(old, family_lines(read_json(family)))
    if new != old:
        with atomic_path(readme) as partial:
            partial.write_text(new)
    print(f"README.md: {'written from' if new != old else 'in step with'} {family}")


if __name__ == "__main__":
    try:
        main()
    except SegdistillError as error:
        sys.exit(f"error: {error}")
