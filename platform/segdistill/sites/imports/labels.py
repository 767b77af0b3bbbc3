"""From the source's label codes to the task's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.sites.protocol import Protocol
from segdistill.texts import read_yaml_mapping, whole_number

SAME = "same"

WIDEST = 1 << 20  # range of codes up to which a table is used


@dataclass(frozen=True)
class CodeMap:
    """What each source code becomes.

    Attributes:
        codes: source code to the task's code, 0 for background, ``overlap.IGNORED`` for what the source
            can't tell; other source codes are unknown.
        names: source code to its name in the source, for messages; may be empty.
    """

    codes: dict[int, int]
    names: dict[int, str]

    def unknown(self, labels: npt.NDArray[Any]) -> list[str]:
        """The codes in ``labels`` (X, Y, Z) without a meaning in the task, named if the source does."""
        strange = sorted(codes_in(labels) - set(self.codes))
        return [f"{code} ({self.names[code]})" if code in self.names else str(code) for code in strange]

    def apply(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """``labels`` (X, Y, Z) in the task's codes, uint8; every code must be known."""
        codes = sorted(codes_in(labels))
        if codes[-1] - codes[0] < WIDEST:
            table = np.zeros(codes[-1] - codes[0] + 1, dtype=np.uint8)
            table[np.array(codes) - codes[0]] = [self.codes[code] for code in codes]
            return table[labels - np.int64(codes[0])]
        mapped = np.zeros(labels.shape, dtype=np.uint8)
        for code in codes:
            mapped[labels == code] = self.codes[code]
        return mapped


@dataclass(frozen=True)
class LabelChoice:
    """How the user (or the layout) says the source's labels are to be read.

    Attributes:
        by_code: source code to the task's code.
        by_name: source name, in the form of :func:`plain`, to the task's code.
    """

    by_code: dict[int, int]
    by_name: dict[str, int]

    def code_map(self, names: Mapping[int, str] | None) -> CodeMap:
        """The map for a label file whose codes the source gives ``names``; a code beats a name."""
        named = {
            code: self.by_name[plain(name)]
            for code, name in (names or {}).items()
            if plain(name) in self.by_name
        }
        return CodeMap({0: 0} | named | self.by_code, dict(names or {}))


def codes_in(labels: npt.NDArray[Any]) -> set[int]:
    """The codes that occur in an integer array, by counting where their range allows it."""
    low, high = int(labels.min()), int(labels.max())
    if high - low >= WIDEST:
        return set(np.unique(labels).tolist())
    counts = np.bincount((labels - np.int64(low)).ravel())
    return set((np.flatnonzero(counts) + low).tolist())


def plain(name: str) -> str:
    """A label name without what differs between writers: case, spaces and hyphens."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def choose_labels(choice: str | None, protocol: Protocol) -> LabelChoice:
    """Read the user's choice of how labels are mapped.

    Args:
        choice: None: names that equal the task's structures, or ``ignore``; ``same``: codes are the
            task's own; the name of one of the protocol's maps, e.g. ``freesurfer``; or a YAML file of
            ``source code or name: structure``, with an optional ``extends: MAP`` to start from a map.
        protocol: the task's.

    Raises:
        SegdistillError: neither a map nor a file, or a file that names an unknown structure.
    """
    if choice is None:
        return LabelChoice({}, {plain(name): code for name, code in protocol.codes.items()})
    if choice == SAME:
        return LabelChoice({code: code for code in (*protocol.structures, IGNORED)}, {})
    if choice in protocol.maps:
        return LabelChoice(dict(protocol.maps[choice]), {})
    path = Path(choice)
    known = ", ".join(sorted([SAME, *protocol.maps]))
    if not path.is_file():
        raise SegdistillError(f"--labels {choice}: no such file and no built-in map ({known}).")
    body = read_yaml_mapping(path)
    if not body:
        raise SegdistillError(f"{path}: give lines of 'source code or name: structure'.")
    return _from_entries(path, body, protocol)


def _from_entries(path: Path, body: dict[Any, Any], protocol: Protocol) -> LabelChoice:
    base = body.pop("extends", None)
    if base is not None and (not isinstance(base, str) or base not in protocol.maps):
        known = ", ".join(sorted(protocol.maps))
        raise SegdistillError(f"{path}: extends {base!r}, which is no built-in map ({known}).")
    by_code = dict(protocol.maps[base]) if base else {}
    entries: dict[int | str, int] = {}
    for key, structure in body.items():
        try:
            ours = protocol.code_of(structure)
        except (KeyError, TypeError) as error:
            names = ", ".join(protocol.codes)
            raise SegdistillError(
                f"{path}: {key}: {structure!r} is no structure of {protocol.task}. Use one of: {names}."
            ) from error
        if isinstance(key, bool):
            raise SegdistillError(f"{path}: YAML takes a label's name for {key}. Write it in quotes.")
        try:
            entry: int | str = whole_number(key)
        except ValueError:
            entry = plain(str(key))
        if entries.setdefault(entry, ours) != ours:
            raise SegdistillError(f"{path}: {key} is given two structures. Keep one line of it.")
    by_code |= {key: ours for key, ours in entries.items() if isinstance(key, int)}
    return LabelChoice(by_code, {key: ours for key, ours in entries.items() if isinstance(key, str)})
