"""DVC reruns a stage when, and only when, code that decides its output has changed."""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import grimp
import pytest
import yaml

from segdistill.runtime.plan import Plan
from serving.packaging.bento import LIBRARY, SERVICE

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"segdistill": "platform/segdistill", "pipelines": "pipelines", "serving": "serving"}

_TORCH = {"segdistill.runtime.backend": "engines for bundles; of it the interface, for torch runs"}
_MLFLOW = {"segdistill.registry": "MLflow follows a training along"}
_RENDERING = {"segdistill.simulation": "draws patches for training"}
_BUNDLE = {"segdistill.registry": "hands over the bundle whose digest the receipt names"}
#: What decides nothing of a stage's output, by stage ('*': of any): modules or whole packages. What they
#: import isn't looked at either. If one alters an output after all, 'dvc repro -f STAGE' makes it anew.
DECIDES_NOTHING: Mapping[str, Mapping[str, str]] = {
    "*": {
        "pipelines.stage": "how errors are told",
        "pipelines.params": "reads the knobs, of which a stage's are its params",
        "segdistill.params": "reads knobs, of which a stage's are its params",
        "segdistill.evaluation.knobs": "which knobs there are",
        "segdistill.training.knobs": "which knobs there are",
        "segdistill.files": "whole files or none, and how errors are told",
        "segdistill.network.finite": "which weights are refused",
        "segdistill.telemetry": "that nobody is told of it",
        "segdistill.shown": "commands as they are shown to people",
        "segdistill.texts": "which foreign text is refused, and in which words",
        "segdistill.runtime.cpus": "how many processes and threads, so how fast",
    },
    "anatomy": {"segdistill.simulation.anatomies.{other}": "of other tasks"},
    "site": {
        "segdistill.simulation.{other}": "the scanner of another modality",
        "segdistill.sites.protocol": "for making an anatomy, which then says what its codes mean",
    },
    "soft_labels": _TORCH | _RENDERING,
    "export": _RENDERING,
    "teacher": {
        **_TORCH,
        **_MLFLOW,
        "segdistill.training.distillation": "how students are taught",
        "segdistill.training.tracking": "MLflow follows a training along",
    },
    "students": _TORCH | _MLFLOW,
    "ablation": {**_TORCH, **_MLFLOW, "segdistill.evaluation.score": "of it the writing of a table"},
    "unseen": {
        "segdistill.sites.pinned": "for fetching the scans, which are a dep",
        "segdistill.sites.protocol": "for labelling the scans, which are a dep",
        "segdistill.sites.surface": "for labelling the scans, which are a dep",
    },
    "tune": _BUNDLE | {"serving": "reads the receipt"},
    "package": _BUNDLE,
}
#: Stages of which the same holds as of another.
SAME = {
    "controls": "teacher",
    "without_teacher": "teacher",
    "without_students": "students",
    "without_soft_labels": "soft_labels",
    "ablation_soft_labels": "soft_labels",
    "without_export": "export",
}
#: What modules read beside code, and the code that they copy: files and folders.
READS: Mapping[str, tuple[str, ...]] = {
    "segdistill.evaluation.report": ("platform/segdistill/evaluation/report.html.j2",),
    "segdistill.registry.seal": ("platform/segdistill/registry/templates",),
    "segdistill.simulation.rendering.tissues": (
        "platform/segdistill/simulation/rendering/tissues/{task}.yaml",
    ),
    "segdistill.sites.protocol": ("platform/segdistill/sites/protocols/{task}.yaml",),
    "segdistill.sites.unseen": ("platform/segdistill/sites/unseen_scans/{task}.yaml",),
    "serving.packaging.bento": (
        "serving/requirements.txt",
        "platform/segdistill/sites/protocols/{task}.yaml",
        *(f"platform/segdistill/{name}" for name in LIBRARY),
        *(f"serving/{name}" for name in SERVICE),
    ),
}


@dataclass(frozen=True)
class Stage:
    """A stage of one task: its name in dvc.yaml, what stands there, and the task's parameters."""

    name: str
    body: Mapping[str, Any]
    params: Mapping[str, Any]

    @property
    def runs_always(self) -> bool:
        """Whether it runs each time, whatever changed."""
        return bool(self.body.get("always_changed"))

    @property
    def script(self) -> str:
        """The module that the stage runs."""
        return re.findall(r"python -m (pipelines\.\w+)", self.body["cmd"])[0]

    @property
    def code(self) -> list[str]:
        """The deps that are no data."""
        task, modality = self.params["task"], self.params["plan"]["modality"]
        deps = [
            dep.replace("${task}", task).replace("${plan.modality}", modality)
            for dep in self.body["deps"]
        ]
        return [dep for dep in deps if dep.startswith(("pipelines/", "platform/", "serving"))]

    def exempt(self, module: str) -> str | None:
        """The entry of :data:`DECIDES_NOTHING` that a module falls under."""
        own = {self.params["task"], self.params["plan"]["modality"]}
        for entry in {**DECIDES_NOTHING["*"], **DECIDES_NOTHING.get(SAME.get(self.name, self.name), {})}:
            room, _, last = entry.rpartition(".")
            if last == "{other}":
                found = module.rpartition(".")
                if found[0] == room and found[2] in OTHERS - own:
                    return entry
            elif module == entry or module.startswith(f"{entry}."):
                return entry
        return None


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _stages(folder: Path, params: Path) -> list[Stage]:
    stages = _read(folder / "dvc.yaml")["stages"]
    return [Stage(name, stage.get("do", stage), _read(params)) for name, stage in stages.items()]


PARAMS = [ROOT / "params.yaml", *sorted(ROOT.glob("tasks/*/params.yaml"))]
OTHERS = {_read(path)["task"] for path in PARAMS} | set(get_args(get_type_hints(Plan)["modality"]))
STAGES = [
    *(stage for params in PARAMS for stage in _stages(ROOT, params)),
    *_stages(ROOT / "studies", ROOT / "params.yaml"),
]


@cache
def _graph() -> grimp.ImportGraph:
    """Who imports whom, in functions too; what is imported for types alone aside."""
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def _file(module: str) -> Path:
    top, _, rest = module.partition(".")
    path = ROOT / PACKAGES[top] / rest.replace(".", "/")
    code = path.with_suffix(".py")
    return code if code.is_file() else path / "__init__.py"


@cache
def _needed(module: str) -> frozenset[str]:
    """What a module imports, the packages around that, and what it starts as a process of its own."""
    found = set(_graph().find_modules_directly_imported_by(module))
    for name in re.findall(r'"-m",\s*"((?:segdistill|serving)[\w.]*)"', _file(module).read_text()):
        found.add(f"{name}.__main__" if f"{name}.__main__" in _graph().modules else name)
    # The package at the top holds the version alone; who writes it down imports it by name.
    for name in list(found):
        parts = name.split(".")
        found |= {".".join(parts[:depth]) for depth in range(2, len(parts))}
    return frozenset(found)


def _closure(stage: Stage) -> tuple[set[str], set[str]]:
    """The modules that decide a stage's output, and the exemptions that were met on the way."""
    found: set[str] = set()
    met: set[str] = set()
    waiting = [stage.script]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        if entry := stage.exempt(module):
            met.add(entry)
            continue
        found.add(module)
        waiting += _needed(module)
    return found, met


def _files(paths: Iterable[str]) -> set[str]:
    """The files among ``paths`` and in the folders among them, but none that is a docstring alone."""
    found: set[Path] = set()
    for path in (ROOT / name for name in paths):
        found |= {path} if path.is_file() else {file for file in path.rglob("*") if file.is_file()}
    return {
        file.relative_to(ROOT).as_posix()
        for file in found
        if "__pycache__" not in file.parts and not _says_nothing(file)
    }


@cache
def _says_nothing(file: Path) -> bool:
    return file.name == "__init__.py" and len(ast.parse(file.read_text()).body) <= 1


def _deciding(stage: Stage) -> set[str]:
    """The files that decide a stage's output."""
    modules, _ = _closure(stage)
    data = [name for module in modules for name in READS.get(module, ())]
    paths = [name.replace("{task}", stage.params["task"]) for name in data]
    return _files([*(str(_file(module)) for module in modules), *paths])


def _named(stage: Stage) -> str:
    return f"{stage.params['task']}-{stage.name}"


@pytest.mark.parametrize(
    "stage", [one for one in STAGES if "always_changed" not in one.body], ids=_named
)
def test_a_stage_depends_on_all_code_that_decides_its_output(stage: Stage) -> None:
    """Every module that the script reaches, and what those read, is a dep or lies in one."""
    missing = _deciding(stage) - _files(stage.code)
    assert not missing, f"deps of {stage.name} in dvc.yaml lack {sorted(missing)}"


@pytest.mark.parametrize("name", {stage.name: None for stage in STAGES})
def test_a_stage_depends_on_no_code_that_decides_nothing(name: str) -> None:
    """No dep makes a stage run again for code that its script doesn't reach, in any task."""
    tasks = [stage for stage in STAGES if stage.name == name]
    deciding = set().union(*(_deciding(stage) for stage in tasks))
    for stage in tasks:
        for dep in stage.code:
            files = _files([dep])
            assert files & deciding, f"{dep} decides nothing of {name}"
            idle = {
                file
                for file in files - deciding
                # A room's command and what is exempt may lie in a folder that decides as a whole.
                if not file.endswith("/__main__.py") and not stage.exempt(_module(file))
            }
            assert not idle, f"{dep} brings {sorted(idle)}, which decide nothing of {name}"


def _module(file: str) -> str:
    return file.removeprefix("platform/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_every_exemption_is_met() -> None:
    """An exemption that no stage of its name needs any longer is removed."""
    met = {(SAME.get(stage.name, stage.name), entry) for stage in STAGES for entry in _closure(stage)[1]}
    for name, entries in DECIDES_NOTHING.items():
        assert not {
            entry for entry in entries if not any(entry == m and name in ("*", n) for n, m in met)
        }


def test_all_data_of_the_code_has_a_reader() -> None:
    """Whatever lies among the code and is no code is read by a module that stages know of."""
    read = _files(
        path.replace("{task}", str(_read(params)["task"]))
        for paths in READS.values()
        for path in paths
        for params in PARAMS
    )
    data = {file for file in _files(["platform", "serving", "pipelines"]) if not file.endswith(".py")}
    assert data <= read


def test_the_reports_page_times_no_model() -> None:
    """The page's template and what fills it are no dep of the evaluation."""
    for stage in STAGES:
        if stage.name == "evaluate":
            assert not [file for file in _files(stage.code) if "/report." in file]
        if stage.name == "report":
            assert "platform/segdistill/evaluation/report.html.j2" in stage.code
