"""One promoted and packaged small family for all tests of the service."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segdistill.registry.promote import promote
from segdistill.registry.register import register_family
from tests.live_server import ROOT, watched
from tests.small_family import TASK, make_root

Package = Callable[[Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def package() -> Package:
    """Runs the stages champion, tune and package on a root, in a process, as 'dvc repro' does."""

    def run(root: Path) -> "subprocess.CompletedProcess[str]":
        receipts = root / "registry" / TASK
        env = watched(root)
        env.pop("MLFLOW_TRACKING_URI", None)
        common = [sys.executable, "-m"]
        place = ["--root", str(root)]
        champion = ["--out", str(receipts / "champion.json")]
        done = subprocess.run(
            [*common, "pipelines.champion", *place, *champion],
            cwd=ROOT, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done
        promoted = ["--champion", str(receipts / "champion.json")]
        tuning = ["--sites", str(root / "data" / "sites" / TASK), "--out", str(receipts / "tuning.json")]
        done = subprocess.run(
            [*common, "pipelines.tune", *place, *promoted, *tuning],
            cwd=ROOT, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done
        bento = [*promoted, "--tuning", str(receipts / "tuning.json")]
        bento += ["--out", str(receipts / "bento.json")]
        return subprocess.run(
            [*common, "pipelines.package", *place, *bento],
            cwd=ROOT, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose student is promoted, and nothing is packaged yet."""
    root = make_root(tmp_path_factory.mktemp("promoted"), tuning_cases=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_family(root, TASK)
        promote(root, TASK, "student-x4", reason="test")
    return root


@pytest.fixture(scope="session")
def packaged(promoted: Path, package: Package) -> Path:
    """The same root, packaged."""
    done = package(promoted)
    assert done.returncode == 0, done.stderr
    return promoted
