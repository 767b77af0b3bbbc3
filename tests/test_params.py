"""Knobs are read strictly: what isn't one, isn't there or makes no sense is named with file and key."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.params import read_params, read_studies
from segdistill.files import SegdistillError

ROOT = Path(__file__).resolve().parents[1]
FILES: dict[str, Callable[[Path], Any]] = {
    "params.yaml": read_params,
    **{str(path.relative_to(ROOT)): read_params for path in ROOT.glob("profiles/*.yaml")},
    **{str(path.relative_to(ROOT)): read_params for path in ROOT.glob("tasks/*/params.yaml")},
    "studies/params.yaml": read_studies,
}
BODIES = {name: yaml.safe_load((ROOT / name).read_text()) for name in FILES}
#: What the user names: any key is one there.
NAMED = {("sites",), ("students",), ("ablation", "widths"), ("ablation", "rows")}
#: Nothing that a knob may be.
NONSENSE = [[], {"a": 1}, "", -7, [None]]


def _sections(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every section that has knobs or sections of its own; of what the user names, one."""
    if isinstance(node, dict):
        yield path
        for key, value in list(node.items())[-1:] if path in NAMED else node.items():
            yield from _sections(value, (*path, key))


def _at(body: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


SECTIONS = [
    (name, path)
    for name, body in BODIES.items()
    if not name.startswith("profiles/")  # which have the sections of params.yaml
    for path in _sections(body)
]
# A row says what it changes, so none of its knobs must be there; nor must one that the user named.
KNOBS = [
    (name, (*path, key))
    for name, path in SECTIONS
    for key in _at(BODIES[name], path)
    if path not in NAMED and path[:2] != ("ablation", "rows")
]


def _wrong(name: str, body: Any, folder: Path) -> str:
    file = folder / Path(name).name
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    with pytest.raises(SegdistillError) as error:
        FILES[name](file)
    text = str(error.value)
    assert text.startswith(f"{file}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", FILES)
def test_the_projects_own_files_are_read(name: str) -> None:
    """Every profile, task and study has exactly the knobs that there are."""
    FILES[name](ROOT / name)


@pytest.mark.parametrize(("name", "path"), [one for one in SECTIONS if one[1] not in NAMED])
def test_a_key_that_is_no_knob_is_refused(name: str, path: tuple[str, ...], tmp_path: Path) -> None:
    """In every section a misspelt knob is named, never passed over."""
    body = copy.deepcopy(BODIES[name])
    _at(body, path)["learning_rat"] = 1
    said = _wrong(name, body, tmp_path)
    place = (*path, "distillation") if path[:2] == ("ablation", "rows") else path
    assert f"{'.'.join((*place, 'learning_rat'))} is no knob" in said


@pytest.mark.parametrize(("name", "path"), KNOBS)
def test_a_knob_that_is_not_there_is_named(name: str, path: tuple[str, ...], tmp_path: Path) -> None:
    """No knob has a default that nobody wrote down."""
    body = copy.deepcopy(BODIES[name])
    del _at(body, path[:-1])[path[-1]]
    assert f"{'.'.join(path)} is missing" in _wrong(name, body, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(knob=st.sampled_from(KNOBS), value=st.sampled_from(NONSENSE))
def test_a_value_of_the_wrong_kind_is_named(
    knob: tuple[str, tuple[str, ...]], value: Any, tmp_path: Path
) -> None:
    """A list, a section, an empty text or a negative number where it can't be is refused by its key."""
    name, path = knob
    body = copy.deepcopy(BODIES[name])
    kind = type(_at(body, path))
    if path in NAMED or path[-1] in ("overlaps", "seeds", "sites", "students", "learning_rates"):
        value = 3
    elif kind is str or path[-1] in ("ready", "start"):
        value = [value]
    _at(body, path[:-1])[path[-1]] = value
    assert path[0] in _wrong(name, body, tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("training", "full_share"), 1.5, "training.full_share is 1.5; it should be less than"),
        (("training", "full_share"), 0.99, "training has full_share 0.99 above decay_share 0.95"),
        (("teacher", "start"), 3, "teacher.start is 3; it should be a valid string"),
        (("training", "batch_size"), True, "training.batch_size is true; it should be a valid integer"),
        (("training", "batch_size"), "2", 'training.batch_size is "2"; it should be a valid integer'),
        (("training", "ema"), float("nan"), "training.ema is NaN; it should be a finite number"),
        (("plan", "mode"), "guess", "plan.mode is \"guess\"; it should be 'windows' or 'whole'"),
        (("plan", "patch_size"), [64, 64], "plan.patch_size.2 is missing"),
        (("students", "x4", "width"), 0, "students.x4.width is 0; it should be greater than 0"),
        (("sites", "site_a", "subjects"), 3, "sites.site_a split adds up to 14, subjects is 3"),
        (("task",), None, "task is null; it should be a valid string"),
    ],
)
def test_what_is_wrong_is_said(path: tuple[str, ...], value: Any, says: str, tmp_path: Path) -> None:
    """The message has the key, the value and what it should be."""
    body = copy.deepcopy(BODIES["params.yaml"])
    _at(body, path[:-1])[path[-1]] = value
    assert says in _wrong("params.yaml", body, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", r"not a YAML file .*line \d"),
        ("3", "lines of 'key: value'"),
        ("", "task is missing; seed is missing"),
    ],
)
def test_a_file_that_holds_no_knobs_is_refused(text: str, says: str, tmp_path: Path) -> None:
    """Broken YAML, or another kind of content, is told with the file."""
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(SegdistillError, match=says):
        read_params(file)
    with pytest.raises(SegdistillError, match="no such file"):
        read_params(tmp_path / "none.yaml")
