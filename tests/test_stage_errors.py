"""A stage that fails says one line, whichever it is."""

import errno
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from pipelines.stage import TRACEBACK, run_stage
from segdistill.files import SegdistillError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("pipelines", "tools")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)


def _raises(error: BaseException) -> Callable[[], NoReturn]:
    def main() -> NoReturn:
        raise error

    return main


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_ends_that_way(script: str) -> None:
    """Each stage and each tool hands its ``main`` to the one that tells errors."""
    text = (ROOT / script.replace(".", "/")).with_suffix(".py").read_text()
    assert re.search(
        r'if __name__ == "__main__":\n(    stop_politely\(\)\n)?    run_stage\(main\)\n$', text
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SegdistillError("a.nii: no scan. Import it."), "error: a.nii: no scan. Import it."),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.nii"),
            "error: out/a.nii: No space left on device.",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device."),
        (FileNotFoundError("gone"), "error: gone"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message alone is told, and the traceback of it only on demand."""
    monkeypatch.delenv(TRACEBACK, raising=False)
    with pytest.raises(SystemExit) as ended:
        run_stage(_raises(error))
    assert ended.value.code == says
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(type(error)):
        run_stage(_raises(error))


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    """An error that no user can mend isn't dressed up as one that they can."""
    with pytest.raises(KeyError):
        run_stage(_raises(KeyError("role")))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train", "teacher --plan p --data d --out o --curves c.csv"),
        ("export", "--models m --data d --out o"),
    ],
)
def test_train_and_export_say_one_line_too(
    script: str, arguments: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without their knobs they name the file that is missing and end."""
    monkeypatch.delenv(TRACEBACK, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments.split(), "--params", "none.yaml"])
    with pytest.raises(SystemExit, match=r"error: none\.yaml: ") as ended:
        runpy.run_module(f"pipelines.{script}", run_name="__main__")
    assert "\n" not in str(ended.value.code)


def test_a_name_that_the_knobs_lack_is_told_with_those_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A site that isn't among the parameters is named in one line, with those that are."""
    monkeypatch.delenv(TRACEBACK, raising=False)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["site", "nope", "--anatomy", "none", "--out", "none"])
    with pytest.raises(SystemExit, match=r"no site 'nope'.*site_a, site_b"):
        runpy.run_module("pipelines.site", run_name="__main__")
