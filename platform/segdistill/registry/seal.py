"""Seal a bundle: add the model card and where it comes from, so that it can be read on its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from segdistill.network.finite import require_finite_onnx
from segdistill.registry.family import Member
from segdistill.registry.lineage import Lineage
from segdistill.runtime import bundle as bundles
from segdistill.runtime.bundle import Bundle

CARD = "card.md"


def seal_with_card(
    source: Bundle,
    target: Path,
    member: Member,
    *,
    control: Member | None,
    teacher: Mapping[str, str],
    lineage: Lineage,
) -> Bundle:
    """Copy a bundle to ``target`` with its card, its data and its teacher in the provenance.

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
    }
    if teacher:
        extra["teacher"] = dict(teacher)
    card = _card(source, member, control, lineage, {**source.provenance, **extra})
    return bundles.seal(source.folder, target, {CARD: card.encode()}, extra)


def _card(
    bundle: Bundle,
    member: Member,
    control: Member | None,
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
