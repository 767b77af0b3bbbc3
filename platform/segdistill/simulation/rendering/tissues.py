"""Which codes of a label map are which tissue, and how bright a tissue may be: data, one file a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError
from segdistill.simulation.hounsfield import ENHANCEMENT
from segdistill.simulation.rendering.labelmap import AIR, Tissue
from segdistill.sites.protocol import expand_codes
from segdistill.texts import read_yaml_mapping

TISSUES = Path(__file__).parent / "tissues"

#: By modality, what brightness may be measured by. ``kidney_cortex`` is the kidney's outer layer.
ANCHORS: Mapping[str, tuple[str, ...]] = {
    "mri": (AIR, "fluid", "grey", "white"),
    "ct": (AIR, "water", "kidney_cortex", *ENHANCEMENT),
}
#: By modality, what a code that no tissue lists looks like.
UNKNOWN: Mapping[str, Tissue] = {
    "mri": Tissue("unknown", (AIR, "white"), (0.0, 1.3), (0.0, 0.1), (0.0, 0.2)),
    "ct": Tissue(
        "unknown", ("water", "water"), (0.0, 0.0), (0.0, 10.0), (0.0, 15.0), hu=(-120.0, 150.0)
    ),
}


@dataclass(frozen=True)
class Tissues:
    """A task's tissues.

    Attributes:
        modality: ``mri`` or ``ct``.
        tissues: by name.
        part_of: source code to the name of its tissue and which of the tissue's parts (left, right) it
            belongs to.
    """

    modality: str
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
        modality = body["modality"]
        usual = {key: v for key, v in body.items() if key not in ("task", "modality", "tissues")}
        for name, entry in body["tissues"].items():
            facts: dict[str, Any] = usual | {key: v for key, v in entry.items() if key != "codes"}
            lists = {key: tuple(v) for key, v in facts.items() if isinstance(v, list)}
            tissues[name] = Tissue(name=name, **(facts | lists))
            _check(tissues[name], ANCHORS[modality])
            for part, codes in enumerate(entry["codes"]):
                for code in expand_codes(codes):
                    if part_of.setdefault(code, (name, part)) != (name, part):
                        raise ValueError(f"code {code} is listed twice")
        if part_of.get(0) != (AIR, 0):
            raise ValueError(f"code 0 isn't {AIR}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SegdistillError(f"{path}: not a list of tissues ({error}). Mend the file.") from error
    return Tissues(modality, tissues, part_of)


def _check(tissue: Tissue, anchors: tuple[str, ...]) -> None:
    if len(tissue.between) != 2 or not set(tissue.between) <= set(anchors):
        raise ValueError(f"{tissue.name}: 'between' takes two of {', '.join(anchors)}")
    for name in ("bright", "grain", "patches", "hu", "gas"):
        low, high = getattr(tissue, name) or (0.0, 0.0)
        if not low <= high:
            raise ValueError(f"{tissue.name}: {name} {[low, high]} is not from low to high")
