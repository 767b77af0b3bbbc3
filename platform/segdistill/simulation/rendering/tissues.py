"""Which codes of a label map are which tissue, and how bright a tissue may be: data, one file a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError
from segdistill.simulation.rendering.labelmap import AIR, Tissue
from segdistill.sites.protocol import expand_codes
from segdistill.texts import read_yaml_mapping

TISSUES = Path(__file__).parent / "tissues"

ANCHORS = (AIR, "fluid", "grey", "white")


@dataclass(frozen=True)
class Tissues:
    """A task's tissues.

    Attributes:
        tissues: by name.
        part_of: source code to the name of its tissue and which of the tissue's parts (left, right) it
            belongs to.
    """

    tissues: Mapping[str, Tissue]
    part_of: Mapping[int, tuple[str, int]]


def read_tissues(task: str, folder: Path = TISSUES) -> Tissues:
    """Read ``folder/TASK.yaml``.

    Raises:
        SegdistillError: no such file, or it contradicts itself.
    """
    path = folder / f"{task}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise SegdistillError(f"{path}: no tissues for task {task!r}. Known: {known}.")
    tissues: dict[str, Tissue] = {}
    part_of: dict[int, tuple[str, int]] = {}
    try:
        body = read_yaml_mapping(path)
        usual = {key: body[key] for key in ("grain", "patches")}
        for name, entry in body["tissues"].items():
            facts: dict[str, Any] = usual | {key: v for key, v in entry.items() if key != "codes"}
            lists = {key: tuple(v) for key, v in facts.items() if isinstance(v, list)}
            tissues[name] = Tissue(name=name, **(facts | lists))
            _check(tissues[name])
            for part, codes in enumerate(entry["codes"]):
                for code in expand_codes(codes):
                    if part_of.setdefault(code, (name, part)) != (name, part):
                        raise ValueError(f"code {code} is listed twice")
        if part_of.get(0) != (AIR, 0):
            raise ValueError(f"code 0 isn't {AIR}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SegdistillError(f"{path}: not a list of tissues ({error}). Mend the file.") from error
    return Tissues(tissues, part_of)


def _check(tissue: Tissue) -> None:
    if not set(tissue.between) <= set(ANCHORS):
        raise ValueError(f"{tissue.name}: 'between' takes two of {', '.join(ANCHORS)}")
    for name in ("bright", "grain", "patches"):
        low, high = getattr(tissue, name)
        if not low <= high:
            raise ValueError(f"{tissue.name}: {name} {[low, high]} is not from low to high")
