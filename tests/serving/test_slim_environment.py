"""The bento in an environment that has nothing but what it asks for."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import httpx
import pytest

from segdistill.files import read_json
from tests.live_server import free_port, serve
from tests.onnx_models import ball_file
from tests.small_family import TASK

pytestmark = pytest.mark.slow


def test_the_bento_serves_from_an_empty_environment(packaged: Path, tmp_path: Path) -> None:
    """Exported and imported where only its requirements are, the bento serves; no trainer is there."""
    receipt = read_json(packaged / "registry" / TASK / "bento.json")
    away = tmp_path / "away.bento"
    here = {**os.environ, "BENTOML_HOME": str(packaged / "bentos"), "BENTOML_DO_NOT_TRACK": "True"}
    bentoml = [sys.executable, "-m", "bentoml"]
    subprocess.run([*bentoml, "export", receipt["bento"], str(away)], env=here, check=True)

    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    name, version = receipt["bento"].split(":")
    requirements = (
        packaged / "bentos" / "bentos" / name / version / "env" / "python" / "requirements.txt"
    )
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, "-r", str(requirements)], check=True)

    found = subprocess.run(
        [python, "-c", "import importlib.util as u; print([m for m in "
         "('torch', 'ray', 'mlflow', 'monai', 'dvc', 'segdistill') if u.find_spec(m)])"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert found.strip() == "[]"

    outside = {
        "PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": str(tmp_path),
        "BENTOML_HOME": str(tmp_path / "home"),
    }
    slim = [python, "-m", "bentoml"]
    subprocess.run([*slim, "import", str(away)], env=outside, cwd=tmp_path, check=True)
    sources = tmp_path / "home" / "bentos" / name / version / "src"
    assert (sources / "serving" / "protocol.yaml").is_file()
    codes = subprocess.run(
        [python, "-c", "from serving.contract import find_codes, find_served, verified; "
         "served, folder = find_served(); print(find_codes(served, verified(served, folder)))"],
        env=outside, cwd=sources, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "99SEGDISTILL" in codes  # the small family's protocol is no task's
    port = free_port()
    command = [*slim, "serve", receipt["bento"], "--port", str(port)]
    ball_file(tmp_path / "scan.nii.gz")
    with serve(command, port, "/readyz", tmp_path, outside, tmp_path / "serve.log") as live:
        scan = (tmp_path / "scan.nii.gz").read_bytes()
        answer = httpx.post(f"{live.url}/volumes", files={"scan": ("scan.nii.gz", scan)}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"]["bundle_digest"] == receipt["bundle_digest"]
    assert answer.json()["volumes_ml"]["structure_1"] > 10
