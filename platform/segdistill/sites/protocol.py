"""A task's label protocol: its structures, and how other tools' label codes map to them.

The protocol is data, ``protocols/TASK.yaml`` beside this module, and the one place that ties codes
to names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError, visible
from segdistill.overlap import IGNORED
from segdistill.texts import read_yaml_mapping

PROTOCOLS = Path(__file__).parent / "protocols"

BACKGROUND = "background"
#: As in nnU-Net: what a label map can't tell is neither background nor any of the structures.
IGNORE = "ignore"


@dataclass(frozen=True)
class Protocol:
    """What the label maps of a task mean.

    Attributes:
        task: e.g. ``brain_mri``.
        name: the protocol's name, e.g. ``mindboggle-10``.
        structures: label code (1 to 254) to structure name; 0 is background and not listed.
        maps: by name of a tool, that tool's label code to this protocol's (0: background, 255: ignored).
    """

    task: str
    name: str
    structures: dict[int, str]
    maps: dict[str, dict[int, int]]

    @property
    def freesurfer(self) -> dict[int, int]:
        """FreeSurfer's codes to this protocol's; empty if the task has no such map."""
        return self.maps.get("freesurfer", {})

    @property
    def codes(self) -> dict[str, int]:
        """The code of every structure's name, of ``background`` and of ``ignore``."""
        named = {name: code for code, name in self.structures.items()}
        return named | {BACKGROUND: 0, IGNORE: IGNORED}

    def code_of(self, structure: str) -> int:
        """One of :attr:`codes`.

        Raises:
            KeyError: no structure has this name.
        """
        return self.codes[structure]


def read_protocol(task: str, folder: Path = PROTOCOLS) -> Protocol:
    """Read the protocol of ``task`` from ``folder/TASK.yaml``.

    Raises:
        SegdistillError: no such task, or the file contradicts itself.
    """
    path = folder / f"{task}.yaml"
    known = [found.stem for found in visible(folder.glob("*.yaml"))]
    if task not in known:
        raise SegdistillError(
            f"{path}: no label protocol for task {task!r}. Take a task that has one "
            f"({', '.join(known)}), or write this file."
        )
    body = read_yaml_mapping(path)
    try:
        structures = {int(code): str(name) for code, name in body["structures"].items()}
        protocol = Protocol(body["task"], body["protocol"], structures, {})
        maps = {tool: _codes(protocol, groups) for tool, groups in body.get("maps", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SegdistillError(f"{path}: not a label protocol ({error!r}). Mend the file.") from error
    names = list(structures.values())
    if not names or len(set(names)) != len(names) or {BACKGROUND, IGNORE} & set(names):
        raise SegdistillError(
            f"{path}: structure names must exist, differ and not be {BACKGROUND} or {IGNORE}."
        )
    if not all(1 <= code < IGNORED for code in structures) or body["task"] != task:
        raise SegdistillError(f"{path}: codes must be 1 to {IGNORED - 1} and the task {task!r}.")
    return Protocol(protocol.task, protocol.name, structures, maps)


def _codes(protocol: Protocol, groups: Mapping[str, Iterable[Any]]) -> dict[int, int]:
    codes: dict[int, int] = {}
    for structure, entries in groups.items():
        ours = protocol.code_of(structure)
        for code in expand_codes(entries):
            if codes.setdefault(code, ours) != ours:
                raise ValueError(f"code {code} is in two structures")
    return codes


def expand_codes(entries: Any) -> Iterator[int]:
    """Flatten codes given as numbers, nested lists and ``"first-last"`` ranges."""
    if isinstance(entries, list):
        for entry in entries:
            yield from expand_codes(entry)
    elif isinstance(entries, str):
        first, last = entries.split("-")
        yield from range(int(first), int(last) + 1)
    else:
        yield int(entries)
