"""The house itself: names, knobs, documents, the lock and what CI prints."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.params import read_params
from segdistill import telemetry
from segdistill.network.architecture import Architecture

ROOT = Path(__file__).resolve().parents[1]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
PROFILES = sorted(ROOT.glob("profiles/*.yaml"))
REFERENCE = yaml.safe_load((ROOT / "profiles" / "reference.yaml").read_text())
# Other tasks' parameters: tasks/TASK/params.yaml.
TASKS = {path.parent.name: path for path in sorted(ROOT.glob("tasks/*/params.yaml"))}
# Their entries are named by the user; each entry has the knobs of the first one.
NAMED = ("sites", "students")


def test_platform_is_the_standard_librarys() -> None:
    """From the root, ``import platform`` is the standard library's module."""
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.__file__, platform.python_version())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT) not in done.stdout.replace(sys.prefix, "")
    assert re.search(r"platform\.pyc? \d+\.\d+", done.stdout)


def test_platform_folder_is_no_package() -> None:
    """The source root ``platform/`` has no ``__init__.py`` that could shadow the standard library."""
    assert (ROOT / "platform" / "segdistill").is_dir()
    assert not (ROOT / "platform" / "__init__.py").exists()


def _knobs(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of every leaf."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _knobs(value, (*path, key))
    else:
        yield path, node


def _kind(value: Any) -> Any:
    if isinstance(value, list):
        return [_kind(entry) for entry in value]
    return type(value).__name__


@pytest.mark.parametrize("file", PROFILES, ids=lambda path: path.stem)
def test_profiles_have_the_same_knobs(file: Path) -> None:
    """A profile has exactly the keys of params.yaml, with values of the same types."""
    profile = yaml.safe_load(file.read_text())
    plain = {path: _kind(value) for path, value in _knobs(PARAMS) if path[0] not in NAMED}
    same = {path: _kind(value) for path, value in _knobs(profile) if path[0] not in NAMED}
    assert same == plain
    assert list(profile) == list(PARAMS)
    for part in NAMED:
        shapes = [
            {key: _kind(value) for key, value in entry.items()}
            for entry in [*PARAMS[part].values(), *profile[part].values()]
        ]
        assert all(shape == shapes[0] for shape in shapes), part


@pytest.mark.parametrize("task", TASKS)
def test_tasks_have_the_same_knobs(task: str) -> None:
    """A task's parameters have the keys of params.yaml, people and scanners of its modality aside."""
    own = yaml.safe_load(TASKS[task].read_text())
    theirs = ("cohort", "rendering", *NAMED)
    plain, same = (
        {path: _kind(value) for path, value in _knobs(params) if path[0] not in theirs}
        for params in (PARAMS, own)
    )
    assert same == plain
    assert list(own) == list(PARAMS)
    assert own["task"] == task != PARAMS["task"]
    shapes = [{key: _kind(v) for key, v in entry.items()} for entry in own["sites"].values()]
    assert all(shape == shapes[0] for shape in shapes)
    assert own["students"].keys() == PARAMS["students"].keys()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_goes_through_the_one_pipeline(task: str) -> None:
    """A task's dvc.yaml is the root's own file, and its pipeline.yaml leads to the root and back."""
    folder = TASKS[task].parent
    assert (folder / "dvc.yaml").is_symlink()
    assert (folder / "dvc.yaml").resolve() == ROOT / "dvc.yaml"
    where = yaml.safe_load((folder / "pipeline.yaml").read_text())
    assert (folder / where["root"]).resolve() == ROOT
    assert ROOT / where["params"] == TASKS[task]
    here = yaml.safe_load((ROOT / "pipeline.yaml").read_text())
    assert here == {"root": ".", "params": "params.yaml"}


def test_every_stage_serves_every_task() -> None:
    """Every stage runs in the root, and takes its parameters from the task's own file."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        body = stage.get("do", stage)
        assert body["wdir"] == "${root}", name
        assert all(isinstance(entry, dict) and "${params}" in entry for entry in body.get("params", []))


@pytest.mark.slow
def test_paper_profile_has_the_papers_networks() -> None:
    """The paper's profile makes a teacher of 31 M parameters and an x4 student with 93.7% fewer."""
    import torch

    from segdistill.network.unet import UNet, inference_parameters

    paper = read_params(ROOT / "profiles" / "paper.yaml")

    def parameters(width: float) -> int:
        with torch.device("meta"):
            return inference_parameters(UNet(Architecture.scaled(paper.network, width, 11)))

    teacher, student = parameters(1.0), parameters(paper.students["x4"].width)
    assert teacher == pytest.approx(31e6, rel=0.02)
    assert 1 - student / teacher == pytest.approx(0.9375, abs=0.001)


def _commented(params: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, comment or '') of every line of a file of parameters that holds a value."""
    path: list[str] = []
    for line in params.read_text().splitlines():
        found = re.match(r"^( *)(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line)
        if found:
            depth = len(found[1]) // 2
            path[depth:] = [found[2]]
            if found[3] or found[4]:
                yield tuple(path), found[4] or ""


UNITS = {"mm": r"\bmm\b", "mb": r"\bMB\b", "deg": r"degrees", "hu": r"\bHU\b", "steps": r"step"}


@pytest.mark.parametrize("file", [ROOT / "params.yaml", *TASKS.values()], ids=lambda p: p.parent.name)
def test_every_knob_is_explained(file: Path) -> None:
    """Every knob of a task has a one-line comment, which names the unit that its name promises."""
    comments: dict[tuple[str, ...], str] = {}
    for path, comment in _commented(file):
        # An entry that the user names is explained once, at the first one or at its heading.
        general = (path[0], "*", *path[2:]) if path[0] in NAMED else path
        comments[general] = comments.get(general) or comment
    for path, _ in _knobs(yaml.safe_load(file.read_text())):
        general = (path[0], "*", *path[2:]) if path[0] in NAMED else path
        comment = comments.get(general) or comments.get(path[:1], "") * (path[0] == "students")
        assert len(comment) >= 8, f"{'.'.join(path)} has no comment"
        unit = UNITS.get(path[-1].rsplit("_", 1)[-1])
        assert unit is None or re.search(unit, comment), f"{'.'.join(path)}: no unit in {comment!r}"


#: What makes the reference's patches grow to whole scans, and one pass its mode.
GROWING = {
    ("plan", "patch_size"),
    ("plan", "mode"),
    ("training", "batch_size"),
    ("training", "full_share"),
}


def test_the_reference_is_the_demo_with_more_steps_and_growing_patches() -> None:
    """The reference profile has the demo's knobs and values, but for more steps and growing patches."""
    demo, reference = dict(_knobs(PARAMS)), dict(_knobs(REFERENCE))
    assert demo.keys() == reference.keys()
    changed = {path: (demo[path], value) for path, value in reference.items() if value != demo[path]}
    assert changed.keys() >= GROWING
    longer = {path: values for path, values in changed.items() if path not in GROWING}
    assert longer
    assert all(path[-1].endswith("steps") and more > few for path, (few, more) in longer.items())


def _stage_params() -> set[str]:
    """What the stages of dvc.yaml depend on, with ``foreach`` written out."""
    found: set[str] = set()
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        body = stage.get("do", stage)
        each = [None]
        if "foreach" in stage:
            node: Any = PARAMS
            entries = stage["foreach"]
            if isinstance(entries, str):
                for key in entries.strip("${}").split("."):
                    node = node[key]
                entries = node
            each = list(entries)
        for entry in each:
            for name in (name for group in body.get("params", []) for name in group["${params}"]):
                found.add(re.sub(r"\$\{(key|item)\}", str(entry), name))
    return found


def test_every_knob_reaches_a_stage() -> None:
    """Every knob is a parameter of some stage, so that changing it makes that stage run again."""
    reached = _stage_params()
    idle = [
        name
        for name in (".".join(path) for path, _ in _knobs(PARAMS))
        if not any(name == param or name.startswith(param + ".") for param in reached)
    ]
    assert not idle


@pytest.mark.parametrize("profile", [ROOT / "params.yaml", *PROFILES], ids=lambda path: path.stem)
def test_pipeline_is_one_that_dvc_reads(tmp_path: Path, profile: Path) -> None:
    """With every profile DVC reads dvc.yaml, with a stage per site, student and control."""
    for name in ("dvc.yaml", "pipeline.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "params.yaml").write_bytes(profile.read_bytes())
    env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    for command in (["init", "--no-scm", "-q"], ["stage", "list", "--name-only"]):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    params = yaml.safe_load(profile.read_text())
    stages = done.stdout.split()
    assert {"anatomy", "prepare", "teacher", "evaluate", "register", "champion", "package"} <= {*stages}
    for stage, entries in (("site", "sites"), ("students", "students"), ("controls", "students")):
        assert {name for name in stages if name.startswith(f"{stage}@")} == {
            f"{stage}@{entry}" for entry in params[entries]
        }


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def _anchors(page: str) -> set[str]:
    """GitHub's anchors of a Markdown page's headings."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"```.*?```", "", page, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_listed() -> None:
    """docs/README.md has a line for each page beside it."""
    listed = re.findall(r"^- \[([\w.]+)\]", (ROOT / "docs" / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(
        path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"
    )


def test_links_in_documents_exist() -> None:
    """Every link inside the repository leads to a file that is there, and to a heading in it."""
    broken, seen = [], 0
    for page in (path for path in _tracked() if path.suffix == ".md"):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            seen += 1
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in _anchors(target.read_text())):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert seen
    assert not broken


def test_nothing_of_a_workplace_is_tracked() -> None:
    """No tracked file names a folder of the machine it was written on."""
    absolute = re.compile(rb"(?<![\w.$}/-])/(?:" + b"|".join((b"work", b"root", b"home")) + rb")/\w")
    named = [
        str(path.relative_to(ROOT))
        for path in _tracked()
        if b"\0" not in (content := path.read_bytes()) and absolute.search(content)
    ]
    assert not named


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]).lower()


def _locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", pin) for pin in pins)
    return {_name(pin): pin.partition("==")[2] for pin in pins}


def test_a_stage_outside_the_environment_says_to_activate_it() -> None:
    """Run by a Python without the project, a stage names that Python and the command to give."""
    python = subprocess.run(  # -S: no installed packages, as in a system's own Python
        [sys.executable, "-S", "-m", "pipelines.prepare"],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert python.returncode == 1
    assert python.stderr.startswith(f"error: {sys.executable} has no segdistill.")
    assert ". .venv/bin/activate" in python.stderr


def _declared(kind: str) -> set[str]:
    """What pyproject.toml names: ``run``, ``dev``, or ``build``."""
    body = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        "run": body["project"]["dependencies"],
        "dev": body["project"]["optional-dependencies"]["dev"],
        "build": body["build-system"]["requires"],
    }
    return {_name(requirement) for requirement in found[kind]}


def test_lock_pins_what_the_code_needs() -> None:
    """The lock pins every dependency that pyproject.toml names, those of the tests included."""
    assert _declared("run") | _declared("dev") | _declared("build") <= _locked().keys()


# Declared, and imported nowhere: programs and plug-ins.
NOT_IMPORTED = {
    "dvc": "run as a program by 'dvc repro'",
    "uv": "run by 'bentoml build'",
    "import-linter": "run as lint-imports",
    "dcmqi": "run as a program, to read DICOM results",
    "dicom3tools": "run as a program, dciodvfy",
    "mypy": "run as a program",
    "pre-commit": "run as a program",
    "ruff": "run as a program",
    "pytest-timeout": "a plug-in of pytest",
    "pandas-stubs": "read by mypy",
    "scipy-stubs": "read by mypy",
    "types-psutil": "read by mypy",
    "types-pyyaml": "read by mypy",
}
# Imported, and not of this environment: scripts that run in the one of the real nnU-Net.
ELSEWHERE = {"nnunetv2"}


def _imported(*folders: str) -> set[str]:
    """The distributions that the code in these folders imports, by their normalised names."""
    paths = [path for path in _tracked() if path.suffix == ".py"]
    paths = [path for path in paths if path.relative_to(ROOT).parts[0] in folders]
    own = {"segdistill", "pipelines", "serving", "tools", "benchmarks", "tests"}
    own |= {path.stem for path in paths}  # scripts import their neighbours by name
    tops = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                tops.add(node.module.partition(".")[0])
    known = metadata.packages_distributions()
    declared = _declared("run") | _declared("dev")
    found = set()
    for top in tops - own - ELSEWHERE - sys.stdlib_module_names:
        names = {_name(name) for name in known.get(top, [top])}
        found |= names & declared or names
    return found


def test_what_is_imported_is_declared() -> None:
    """Every package that the code imports is a dependency; what only tests import may be one of dev."""
    code = _imported("platform", "pipelines", "serving", "tools", "benchmarks")
    assert code <= _declared("run")
    assert _imported("tests") <= _declared("run") | _declared("dev")


def test_what_is_declared_is_used() -> None:
    """Every dependency is imported, or its reason is given."""
    used = _imported("platform", "pipelines", "serving", "tools", "benchmarks", "tests")
    assert (_declared("run") | _declared("dev")) - used <= NOT_IMPORTED.keys()
    assert NOT_IMPORTED.keys() <= _declared("run") | _declared("dev")


def test_environment_is_the_lock() -> None:
    """What is installed has the versions of the lock, torch's local build tag aside."""
    installed = {
        _name(d.metadata["Name"]): d.version.partition("+")[0] for d in metadata.distributions()
    }
    wrong = {
        name: (version, installed.get(name))
        for name, version in _locked().items()
        if installed.get(name) != version
    }
    assert not wrong


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("12 passed, 1 skipped in 3.21s", 0),
        ("1 failed, 2 passed in 61.00s (0:01:01)", 1),
        ("no tests ran in 0.01s", 5),
    ],
)
def test_ci_ends_with_pytests_own_line(tmp_path: Path, last: str, status: int) -> None:
    """``.ci/run`` prints pytest's last line last and is red exactly when 'make test' is."""
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "Makefile").write_text(
        f"test:\n\t@echo '1 passed in 9 hours'\n\t@echo '{last}'\n\t@exit {status}\n"
    )
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == (status != 0)
    assert done.stdout.splitlines()[-1] == last


def test_readme_names_targets_that_exist() -> None:
    """Every 'make' command in the documents is a target of the Makefile that 'make help' lists."""
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = {line.split()[0] for line in listed.splitlines()}
    pages = [path for path in _tracked() if path.suffix == ".md"]
    used = {name for page in pages for name in re.findall(r"[`\n] ?make ([a-z-]+)", page.read_text())}
    assert used
    assert used <= targets


def test_makefile_switches_off_the_same_telemetry() -> None:
    """What 'make' exports against telemetry is what the code sets itself."""
    exported = dict(re.findall(r"^export (\w+) := (.*)$", (ROOT / "Makefile").read_text(), re.M))
    assert telemetry.OFF.items() <= exported.items()
