"""The studies as DVC sees them: there when they are asked for, and only then."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).resolve().parents[2]
STUDIES = yaml.safe_load((ROOT / "studies" / "dvc.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline and the studies, with an empty stand-in for whatever a stage makes."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("pipelines", "platform", "serving", "studies"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.lock"))
    for name in ("dvc.yaml", "params.yaml", "pipeline.yaml"):
        shutil.copy(ROOT / name, root / name)
    _dvc(root, "init", "--no-scm", "-q")
    with Repo(str(root)) as repo:
        for out in repo.index.outs:
            path = Path(out.fs_path)
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("{}")
    return root


def _dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _ran(said: str) -> list[str]:
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]


@pytest.mark.slow
def test_the_pipeline_runs_no_study(copy: Path) -> None:
    """'dvc repro' in the root runs the whole pipeline and no stage of the studies."""
    ran = _ran(_dvc(copy, "repro", "--dry"))
    assert {"teacher", "evaluate", "report", "register"} <= set(ran)
    assert not [stage for stage in ran if stage.startswith("studies")]


@pytest.mark.slow
def test_one_command_leaves_one_site_out(copy: Path) -> None:
    """One target trains without the site, compares, and runs no other study."""
    ran = _ran(_dvc(copy, "repro", "--dry", "studies/dvc.yaml:leave_one_site_out@site_b"))
    own = [stage.partition(":")[2] for stage in ran if stage.startswith("studies")]
    assert own[0] == "without_prepare@site_b"
    assert own[-1] == "leave_one_site_out@site_b"
    assert {"without_teacher@site_b", "without_students@site_b-x4", "without_export@site_b"} < set(own)
    assert all("site_b" in stage for stage in own)
    assert "evaluate" in ran  # the full family's figures
    assert "register" not in ran


def test_the_ablation_has_no_way_to_a_test_case() -> None:
    """It takes prepared cases, which hold train and val alone, and no site, bundle or scorecard."""
    deps = STUDIES["ablation"]["deps"]
    data = [path for path in deps if path.split("/")[0] in ("data", "reports", "bundles")]
    assert sorted(data) == [
        *("data/prepared/${task}", "data/ready/${task}.json", "data/studies/${task}/soft_labels")
    ]
    assert "sites" not in STUDIES["ablation"]["cmd"]


def test_studies_write_where_no_stage_of_the_pipeline_reads() -> None:
    """What is trained without a site lies apart and is never exported with the family."""
    for name, stage in STUDIES.items():
        for out in stage.get("do", stage)["outs"]:
            path = out if isinstance(out, str) else next(iter(out))
            assert path.split("/")[1] == "studies" or path.startswith("reports/${task}/"), name
