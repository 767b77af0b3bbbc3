"""Seal a bundle: add the model card and where it comes from, so that it can be read on its own."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from segdistill.family import Figures, flat
from segdistill.network.finite import require_finite_onnx
from segdistill.registry.lineage import Lineage
from segdistill.runtime import bundle as bundles
from segdistill.runtime.bundle import Bundle

CARD = "card.md"
DESCRIPTION = 5000  # characters that a strict database takes for a version's description in MLflow


def seal_with_card(
    source: Bundle,
    target: Path,
    member: Figures,
    *,
    control: Figures | None,
    teacher: Mapping[str, str],
    lineage: Lineage,
) -> Bundle:
    """Copy a bundle to ``target`` with its card, and with figures, data and teacher in its provenance.

    The same inputs make the same bytes: there is no time in it.

    Args:
        source: the bundle as exported and evaluated.
        target: folder to make.
        member: its row of the family.
        control: the row of the control beside it, for a student.
        teacher: ``name`` and ``bundle_digest`` of the teacher it learned from; empty if none.
        lineage: the data.

    Raises:
        SegdistillError: a weight of the bundle isn't finite.
    """
    for network in filter(None, (source.model, source.int8)):
        require_finite_onnx(network, network)
    extra: dict[str, Any] = {
        "data": lineage.hashes,
        "data_digest": lineage.data_digest,
        "simulated": lineage.simulated,
        "git_commit": lineage.code,
        "held_out": [site.path for site in lineage.sites if site.held_out],
        "figures": flat(member),
    }
    if teacher:
        extra["teacher"] = dict(teacher)
    card = _card(source, member, control, lineage, {**source.provenance, **extra})
    return bundles.seal(source.folder, target, {CARD: card.encode()}, extra)


def shortened(card: str, limit: int = DESCRIPTION) -> str:
    """A card as MLflow's page can hold it: without the last sections that don't fit, which it names.

    Args:
        card: Markdown whose sections begin with ``## ``.
        limit: characters of the result; at least 500.
    """
    if len(card) <= limit:
        return card
    head, *sections = re.split(r"^(?=## )", card, flags=re.MULTILINE)
    room = limit - 300  # for the note
    kept = head if len(head) <= room else f"{head[: room - 9]} [...]\n\n"
    while sections and len(kept) + len(sections[0]) <= room:
        kept += sections.pop(0)
    titles = ", ".join(section.splitlines()[0].removeprefix("## ") for section in sections)
    note = f"*Not shown here: {titles}. The whole card is the file `bundle/{CARD}` of this version.*"
    return f"{kept.rstrip()}\n\n{note}\n"


def _card(
    bundle: Bundle,
    member: Figures,
    control: Figures | None,
    lineage: Lineage,
    provenance: Mapping[str, Any],
) -> str:
    # Markdown, not HTML: there is nothing to escape.
    loader = Environment(  # noqa: S701
        loader=PackageLoader("segdistill.registry", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return loader.get_template("card.md.j2").render(
        member=member, control=control, lineage=lineage, provenance=provenance, plan=bundle.plan
    )
