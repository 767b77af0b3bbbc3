"""An imported teacher as DVC sees it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).resolve().parents[2]
FAMILY = ("prepare", "teacher", "students", "controls")


@pytest.mark.slow
def test_trainings_follow_the_files_of_models_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed byte prepares and trains again; an unchanged folder, under any name, does not."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    shutil.copytree(ROOT / "pipelines", "pipelines")
    shutil.copy(ROOT / "pipeline.yaml", ".")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    # These stages alone: DVC reads YAML slowly.
    stages["stages"] = {name: stages["stages"][name] for name in ("ready", *FAMILY)}
    Path("dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["students"] = {"x4": params["students"]["x4"]}
    everything = {"ready", "prepare", "teacher", "students@x4", "controls@x4"}
    weights = Path("imported/teacher/weights.safetensors")
    weights.parent.mkdir(parents=True)
    Path("imported/plan.json").write_text("{}")
    weights.write_bytes(b"one")

    def changed(ready: str | None, start: str | None = None) -> set[str]:
        params["teacher"] |= {"ready": ready, "start": start}
        Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        with Repo() as repo:
            repo.reproduce(targets=["ready"], single_item=True)
            return set(repo.status())

    def done() -> None:
        with Repo() as repo:
            for file in (Path(entry.fs_path) for entry in (*repo.index.deps, *repo.index.outs)):
                if not file.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("stand-in")
            repo.commit(force=True)

    changed(None)
    done()
    assert changed(None) == {"ready"}  # which looks each time
    assert changed("imported") == everything
    done()
    assert changed("imported") == {"ready"}
    weights.write_bytes(b"two")
    assert changed("imported") == everything
    weights.write_bytes(b"one")
    Path("imported").rename("moved")
    assert changed("moved") == {"ready"}
    Path("released").mkdir()
    Path("released/model.json").write_text("{}")
    assert changed(None, "released") == everything
    done()
    assert changed(None, "released") == {"ready"}
    Path("released/model.json").write_text("{} ")
    assert changed(None, "released") == {
        "ready",
        "teacher",
    }  # whose weights students and controls follow
