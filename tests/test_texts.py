"""Text files from outside, and names in what is printed."""

import json
import os
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdistill.files import SegdistillError, subfolders, unfetched, visible
from segdistill.shown import command, repro, shown
from segdistill.texts import (
    read_json_object,
    read_table,
    read_text,
    read_yaml_mapping,
    whole_number,
)

_WORDS = "index\tname\n1\tNéoplasie\n"
_NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: not {0, ord("/")} & set(name))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_in_the_encodings_that_name_themselves(tmp_path: Path, encoding: str) -> None:
    """UTF-8 with and without a mark and UTF-16 with one are the same text."""
    path = tmp_path / "dseg.tsv"
    path.write_bytes(_WORDS.encode(encoding))
    assert read_text(path) == _WORDS
    assert read_table(path, ("index", "name")) == [("1", "Néoplasie")]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32", "cp1250"])
def test_text_in_another_encoding_is_refused_with_the_remedy(tmp_path: Path, encoding: str) -> None:
    """An encoding that can't be told names the file, the line and what to do; nothing is guessed."""
    path = tmp_path / "my table.tsv"
    path.write_bytes(_WORDS.encode(encoding))
    with pytest.raises(
        SegdistillError, match=r"my table\.tsv: line \d isn't UTF-8 text.*iconv"
    ) as caught:
        read_text(path)
    assert shlex.split(str(caught.value).partition("iconv ")[2])[4] == str(path)


@given(body=st.binary(max_size=200))
def test_whatever_bytes_a_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    """No bytes make a reader of outside text end in anything but its value or its refusal."""
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(body)
    for reader in (read_text, read_json_object, read_yaml_mapping, lambda p: read_table(p, ("a", "b"))):
        with suppress(SegdistillError):
            reader(path)


def test_a_missing_file_a_folder_and_a_link_to_nothing_are_refused(tmp_path: Path) -> None:
    """What isn't there, isn't a file, or is a link whose file wasn't fetched, is said."""
    link = tmp_path / "link.json"
    link.symlink_to("../.git/annex/objects/none")
    assert unfetched(link)
    for path, says in ((tmp_path / "no", "no such file"), (tmp_path, "directory"), (link, "fetch it")):
        with pytest.raises(SegdistillError, match=says):
            read_json_object(path)


def test_numbers_that_json_has_not_are_unknown_values(tmp_path: Path) -> None:
    """NaN, Infinity and numbers beyond double precision are read as None."""
    (tmp_path / "a.json").write_text('{"a": NaN, "b": -Infinity, "c": 1e999, "d": [0.5, NaN]}')
    assert read_json_object(tmp_path / "a.json") == {"a": None, "b": None, "c": None, "d": [0.5, None]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"csf": 1, "csf": 2}', "'csf' is there twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' is there twice"),
        ("[1]", "give a JSON object"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_json_that_says_two_things_or_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """A key that is there twice, another top level and what isn't JSON are refused by name."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SegdistillError, match=rf"a\.json: .*{says}"):
        read_json_object(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1: csf\n1: thalamus\n", "1 is there twice"),
        ("a: {x: 1, x: 2}\n", "'x' is there twice"),
        ("- csf\n", "give lines of"),
        ("a: [", "not a YAML file"),
        ("!!python/object/apply:os.system ['true']\n", "not a YAML file"),
        ("a: 2020-13-45\n", "not a YAML file"),
    ],
)
def test_yaml_that_says_two_things_or_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """A key that is there twice, another top level, code and what isn't YAML are refused by name."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SegdistillError, match=rf"a\.yaml: .*{says}"):
        read_yaml_mapping(tmp_path / "a.yaml")


def test_yaml_may_override_what_it_merges(tmp_path: Path) -> None:
    """A key beside a merged one replaces it, as YAML says; that is no key twice."""
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 1}\nown: {<<: *b, x: 2}\n")
    assert read_yaml_mapping(tmp_path / "a.yaml")["own"] == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("code\tname\n1\ta\n", "expected tab-separated columns 'index' and 'name'"),
        ("index,name\n1,a\n", "expected tab-separated columns"),
        ("index\tindex\tname\n1\t2\ta\n", "expected tab-separated columns"),
        ("index\tname\n1\n", "row 1 has no 'name'"),
        ("index\tname\n1\t\n", "row 1 has no 'name'"),
        ('index\tname\n1\t"a\n2\tb\n', "line 3"),
        ("", "expected tab-separated columns"),
    ],
)
def test_a_table_that_lacks_something_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """A column or a cell that is missing, and quotes that don't close, are refused."""
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(SegdistillError, match=rf"a\.tsv: {says}"):
        read_table(tmp_path / "a.tsv", ("index", "name"))


def test_a_table_may_have_more_columns_empty_rows_and_any_line_ends(tmp_path: Path) -> None:
    """Columns nobody asked for, empty rows and the line ends of other systems change nothing."""
    (tmp_path / "a.tsv").write_bytes(b"name\tcolor\t index\r\n a \tred\t1\r\n\t\t\r\nb\t\t2\r\n\r\n")
    assert read_table(tmp_path / "a.tsv", ("index", "name")) == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize(("value", "number"), [(3, 3), (3.0, 3), ("3", 3), (" -3.00 ", -3)])
def test_a_whole_number_is_one_however_it_is_written(value: object, number: int) -> None:
    """3, 3.0 and their texts are whole numbers."""
    assert whole_number(value) == number


@pytest.mark.parametrize(
    "value", [True, None, "", "a", 0.5, "0.5", "1e3", float("nan"), float("inf"), []]
)
def test_what_is_no_whole_number_is_none(value: object) -> None:
    """Truth, fractions, text and nothing are no whole numbers."""
    with pytest.raises(ValueError, match="no whole number"):
        whole_number(value)


@given(names=st.lists(_NAMES, min_size=1, max_size=3))
def test_a_printed_command_means_the_names_that_went_in(names: list[bytes]) -> None:
    """Whatever bytes a name has, bash gives its command exactly that name, and it can be printed."""
    line = command("printf", "%s\\0", *map(os.fsdecode, names))
    assert line.encode()
    assert "\n" not in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == b"".join(name + b"\0" for name in names)


def test_a_path_in_a_command_is_never_an_option() -> None:
    """A relative path that begins with a hyphen is still a path; plain words stay as they are."""
    assert command("rm", "-r", Path("-rf")) == "rm -r ./-rf"
    assert command("dvc", "add", Path("data/sites/a b")) == "dvc add 'data/sites/a b'"


def test_names_are_shown_readable() -> None:
    """Letters of any language stay; bytes that are no UTF-8 and line breaks are written out."""
    assert shown("Péron ж") == "Péron ж"
    assert shown(os.fsdecode(b"P\xe9ron\n")) == r"P\xe9ron\x0a"


def test_half_made_entries_are_not_visible(tmp_path: Path) -> None:
    """Hidden files and folders are left out, files are no folders, and no folder has none."""
    for name in ("b", "a", ".partial-x", ".old-y"):
        (tmp_path / name).mkdir()
    (tmp_path / "c.json").write_text(json.dumps({}))
    assert [path.name for path in visible(tmp_path.iterdir())] == ["a", "b", "c.json"]
    assert [path.name for path in subfolders(tmp_path)] == ["a", "b"]
    assert subfolders(tmp_path / "gone") == []


def test_the_command_of_a_stage_is_that_of_the_task(tmp_path: Path) -> None:
    """A task with a folder of its own is run from there, any other by the pipeline in the root."""
    (tmp_path / "tasks" / "abdominal_ct").mkdir(parents=True)
    (tmp_path / "tasks" / "abdominal_ct" / "dvc.yaml").touch()
    assert repro(tmp_path, "brain_mri", "package") == "dvc repro package"
    assert repro(tmp_path, "abdominal_ct", "package") == "dvc repro tasks/abdominal_ct/dvc.yaml:package"
