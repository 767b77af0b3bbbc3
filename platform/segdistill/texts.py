"""Text files that people and other tools write: encoding, JSON, YAML and tables, read without a guess.

What the platform writes itself is read by :mod:`segdistill.files`.
"""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from segdistill.files import SegdistillError, unfetched
from segdistill.shown import command, shown

FETCH = "is a link to a file that isn't on this machine; fetch it first (git annex get, dvc pull, ...)"

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_MERGE = "tag:yaml.org,2002:merge"


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        SegdistillError: the file can't be read, or is in another encoding.
    """
    try:
        body = path.read_bytes()
    except OSError as error:
        if unfetched(path):
            raise SegdistillError(f"{shown(path)}: {FETCH}.") from error
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise SegdistillError(f"{shown(path)}: {why}.") from error
    wide = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = body.decode("utf-16" if wide else "utf-8-sig")
        line = text[: text.find("\0")].count("\n") + 1 if "\0" in text else None
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
    if line is not None:
        raise SegdistillError(
            f"{shown(path)}: line {line} isn't UTF-8 text. Save it as UTF-8 where it was written, "
            f"or convert it: {command('iconv', '-f', 'latin1', '-t', 'utf-8', path)} > NEW_FILE"
        )
    return text


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object. ``NaN``, ``Infinity`` and numbers beyond double precision are read as None.

    They aren't JSON, but many writers put them where a value is unknown.

    Raises:
        SegdistillError: the file can't be read as text, isn't JSON, has a key twice, or holds something
            else than an object.
    """
    try:
        body = json.loads(
            read_text(path),
            object_pairs_hook=_each_once,
            parse_constant=lambda name: None,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise SegdistillError(
            f"{shown(path)}: not valid JSON ({error}). Mend or copy it anew."
        ) from error
    return _mapping(path, body, "a JSON object, '{...}'")


def read_yaml_mapping(path: Path) -> dict[Any, Any]:
    """A YAML file of ``key: value``; empty for an empty file.

    Raises:
        SegdistillError: the file can't be read as text, isn't YAML, has a key twice, or holds something
            else.
    """
    try:
        body = yaml.load(read_text(path), Loader=_EachOnce)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise SegdistillError(f"{shown(path)}: not a YAML file ({what}).") from error
    return {} if body is None else _mapping(path, body, "lines of 'key: value'")


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The given columns of a tab-separated table with a header, row by row, without empty rows.

    Raises:
        SegdistillError: the file can't be read as text, a column is missing or there twice, or a row
            has nothing in one of the columns.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
    try:
        rows = [[cell.strip() for cell in row] for row in lines]
    except csv.Error as error:
        raise SegdistillError(
            f"{shown(path)}: line {lines.line_num}: {error}. Mend the file."
        ) from error
    header, *rows = [row for row in rows if any(row)] or [[]]
    if any(header.count(name) != 1 for name in columns):
        names = " and ".join(map(repr, columns))
        raise SegdistillError(f"{shown(path)}: expected tab-separated columns {names}.")
    places = [header.index(name) for name in columns]
    for number, row in enumerate(rows, start=1):
        for place in places:
            if place >= len(row) or not row[place]:
                raise SegdistillError(f"{shown(path)}: row {number} has no {header[place]!r}. Mend it.")
    return [tuple(row[place] for place in places) for row in rows]


def whole_number(value: Any) -> int:
    """A whole number that may be written as ``3``, ``3.0`` or text of these.

    Raises:
        ValueError: anything else, ``true`` and an empty text among it.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.partition(".")[0])
    raise ValueError(f"{value!r} is no whole number")


class _EachOnce(yaml.SafeLoader):
    """YAML without code, and without a key that is there twice: PyYAML would let the last one win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """As the base class, for a node whose keys differ."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for key, value in pairs:
        if key in body:
            raise ValueError(f"the key {key!r} is there twice")
        body[key] = value
    return body


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _mapping(path: Path, body: Any, wanted: str) -> dict[Any, Any]:
    if not isinstance(body, dict):
        raise SegdistillError(f"{shown(path)}: give {wanted}.")
    return body
