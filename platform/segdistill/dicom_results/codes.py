"""What a structure is called and how it is coloured, in terms that other systems know."""

import colorsys
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.color import CIELabColor
from pydicom.sr.coding import Code

from segdistill.dicom_results.texts import LONG, SHORT, plain
from segdistill.files import SegdistillError
from segdistill.runtime.plan import Plan

#: Designator of the codes that are made here: DICOM leaves names that begin with 99 to everyone.
PRIVATE_SCHEME = "99SEGDISTILL"

_ANATOMICAL = Code("123037004", "SCT", "Anatomical Structure")
_GOLDEN = 0.618034  # of a turn: hues that follow each other lie far apart


@dataclass(frozen=True)
class StructureCode:
    """The coded name of a structure (DICOM PS3.3 C.8.20.4), and its colour.

    Attributes:
        category: what kind of thing it is, e.g. SNOMED CT 123037004, Anatomical Structure (CID 7150).
        kind: what it is, e.g. SNOMED CT 64033007, Kidney (CID 7151).
        modifier: its side; None where it has none.
        colour: recommended for display, CIELab: L* in [0, 100], a* and b* in [-128, 127]. The standard
            doesn't name the white point; viewers, DCMTK and highdicom take D65.
    """

    category: Code
    kind: Code
    modifier: Code | None
    colour: tuple[float, float, float]


def structure_codes(
    plan: Plan, protocol: Mapping[Any, Any] | None = None, source: str = "label protocol"
) -> dict[str, StructureCode]:
    """The code of every structure of a plan, by name.

    Args:
        plan: the plan, whose label protocol says what its names mean.
        protocol: the label protocol's file, whose section ``codes`` is taken if it is the protocol that
            the plan names; None: there is none.
        source: names the protocol in errors.

    Returns:
        A code for each structure: the protocol's, or else a private one made from the structure's name.

    Raises:
        SegdistillError: an entry of the protocol's section isn't a code and a colour.
    """
    known: dict[str, StructureCode] = {}
    if protocol is not None and protocol.get("protocol") == plan.label_protocol:
        known = _read(protocol.get("codes") or {}, source)
    return {
        entry.name: known.get(entry.name) or _private(entry.name, place)
        for place, entry in enumerate(plan.structures)
    }


def coding_schemes(codes: Mapping[str, StructureCode]) -> list[CodingSchemeIdentificationItem] | None:
    """Who is behind the private codes among these (PS3.3, C.12.1.1): what a result says of them."""
    if all(code.kind.scheme_designator != PRIVATE_SCHEME for code in codes.values()):
        return None
    return [
        CodingSchemeIdentificationItem(
            designator=PRIVATE_SCHEME,
            name="segdistill label protocols",
            responsible_organization="segdistill",
        )
    ]


def _read(section: Any, source: str) -> dict[str, StructureCode]:
    codes = {}
    try:
        for name, entry in section.items():
            modifier = entry.get("modifier")
            lightness, a, b = (float(number) for number in entry["colour"])
            CIELabColor(lightness, a, b)  # in its range
            codes[str(name)] = StructureCode(
                category=_code(entry["category"]),
                kind=_code(entry["type"]),
                modifier=None if modifier is None else _code(modifier),
                colour=(lightness, a, b),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SegdistillError(
            f"{source}: the codes aren't a category, a type and a colour for each structure "
            f"({error!r}). Mend the file."
        ) from error
    return codes


def _code(entry: Any) -> Code:
    value, scheme, meaning = (str(part) for part in entry)
    for part, length in ((value, SHORT), (scheme, SHORT), (meaning, LONG)):
        if not part or plain(part, length) != part:
            raise ValueError(f"{part!r} isn't ASCII of 1 to {length} characters")
    return Code(value, scheme, meaning)


def _private(name: str, place: int) -> StructureCode:
    """A code for a structure that no vocabulary is known for; ``place`` in the plan gives its colour."""
    value = plain(name.upper(), SHORT)
    if value != name.upper():  # shortened, or spelt otherwise: only a digest still tells names apart
        value = f"{value[:7].rstrip()}-{hashlib.sha256(name.encode()).hexdigest()[:8].upper()}"
    rgb = (255 * part for part in colorsys.hsv_to_rgb(place * _GOLDEN % 1, 0.6, 0.85))
    lab = CIELabColor.from_rgb(*rgb).lab
    return StructureCode(
        category=_ANATOMICAL,
        kind=Code(value, PRIVATE_SCHEME, label(name)),
        modifier=None,
        colour=(lab[0], lab[1], lab[2]),
    )


def label(name: str) -> str:
    """A structure's name as a reader sees it: ``kidney right``."""
    return plain(name.replace("_", " "))
