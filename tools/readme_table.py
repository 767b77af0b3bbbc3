"""Bring the results blocks of README.md and docs/profiles.md in step with what the evaluations wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.params import read_params
from pipelines.stage import run_stage
from segdistill.evaluation.compare import Comparison, read_comparisons
from segdistill.evaluation.order import out_of_order
from segdistill.evaluation.summary import training_pace
from segdistill.family import Figures, read_family
from segdistill.files import SegdistillError, atomic_path, read_json

START = "<!-- family table: written by 'make readme', not by hand -->"
END = "<!-- end of the family table -->"
_HEAD = (
    ("member", "parameters", "Dice", "Dice, held-out site", "NSD", "HD95, mm", "retention", "CPU s"),
    (":--", "--:", "--:", "--:", "--:", "--:", "--:", "--:"),
)

PAGES = {
    Path("README.md"): Path("params.yaml"),
    Path("docs/profiles.md"): Path("tasks/abdominal_ct/params.yaml"),
}
"""The pages with such a block, each with the parameters of the task whose results it shows."""


def results(reports: Path) -> list[str]:
    """The lines of the block, from ``family.json`` and what lies beside it."""
    family = read_family(reports / "family.json")
    comparisons = read_comparisons(reports / "comparisons.json")
    pace = training_pace(reports / "curves", [member.name for member in family])
    return [
        *family_lines(family),
        "",
        *verdict_lines(family, comparisons),
        "",
        *comparison_lines(family, comparisons),
        "",
        *(f"- {line}" for line in out_of_order(family, pace)),
        real_scans_line(read_json(reports / "unseen.json")),
    ]


def family_lines(family: Sequence[Figures]) -> list[str]:
    """The family as a Markdown table, one line per member, in the order of ``family.json``.

    The first member is the teacher; beside parameters and CPU seconds is the change against it.
    """
    rows = [*_HEAD, *(_cells(member, family[0]) for member in family)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cells(member: Figures, teacher: Figures) -> tuple[str, ...]:
    def shown(key: str, how: str) -> str:
        value = getattr(member, key)
        return "none" if value is None else format(value, how)

    def saved(key: str) -> str:
        return "" if member is teacher else f" ({getattr(member, key) / getattr(teacher, key) - 1:+.1%})"

    return (
        member.name,
        shown("parameters", ",") + saved("parameters"),
        shown("dice", ".4f"),
        shown("dice_held_out_site", ".4f"),
        shown("nsd", ".4f"),
        shown("hd95_mm", ".2f"),
        shown("retention", ".2%"),
        shown("cpu_seconds", ".2f") + saved("cpu_seconds"),
    )


def verdict_lines(family: Sequence[Figures], comparisons: Sequence[Comparison]) -> list[str]:
    """What is concluded about each student, with the structure and the site on which it loses most."""
    held_out = {
        pair.name: pair
        for pair in comparisons
        if pair.against == family[0].name and pair.sites == "held_out" and pair.metric == "dice"
    }
    lines = []
    for row in family:
        if (verdict := row.verdict) is None:
            continue
        shown = "" if verdict.non_inferior else "not shown to be "
        low = verdict.retention_low
        seen = "no interval" if low is None else f"interval begins at {low:.2%}"
        apart = ""
        if (pair := held_out.get(row.name)) and pair.ratio is not None and pair.ratio_low is not None:
            apart = (
                f"; held-out site: {pair.ratio:.2%}, interval {pair.ratio_low:.2%} to "
                f"{pair.ratio_high:.2%}"
            )
        structure = verdict.worst_structure.replace("_", " ")
        lines.append(
            f"- {row.name}: {shown}non-inferior to the teacher on the seen sites (retention "
            f"{row.retention:.2%}, {seen}{apart}). Largest losses: {structure} "
            f"({-100 * verdict.worst_structure_loss:+.1f} points), {verdict.worst_site} "
            f"({-100 * verdict.worst_site_loss:+.1f} points)"
        )
    return lines


def comparison_lines(family: Sequence[Figures], comparisons: Sequence[Comparison]) -> list[str]:
    """What distillation added: each student against its control on the sites seen in training."""
    controls = {row.name for row in family if row.role == "control"}
    lines = []
    for pair in comparisons:
        if pair.against not in controls or pair.sites != "seen" or pair.metric != "dice":
            continue
        sure = (
            ""
            if pair.low is None
            else f" ({pair.confidence:.0%} interval {pair.low:+.4f} to {pair.high:+.4f})"
        )
        lines.append(
            f"- {pair.name} minus {pair.against}, paired: {pair.difference:+.4f} Dice{sure}; "
            f"higher on {pair.better} of {pair.subjects} subjects"
        )
    return lines


def real_scans_line(unseen: Mapping[str, Any]) -> str:
    """Every member's mean Dice on the real scans that no training saw."""
    scans = ", ".join(case["case"] for case in unseen["cases"])
    members = ", ".join(f"{model['name']} {model['dice']:.4f}" for model in unseen["models"])
    return f"- Dice on real scans that no training saw ({scans}): {members}"


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
    """Rewrite the blocks of the pages in the current folder."""
    for page, params in PAGES.items():
        reports = Path("reports") / read_params(params).task
        old = page.read_text()
        new = with_block(old, results(reports), str(page))
        if new != old:
            with atomic_path(page) as partial:
                partial.write_text(new)
        print(f"{page}: {'written from' if new != old else 'in step with'} {reports}")


if __name__ == "__main__":
    run_stage(main)
