"""While nothing is packaged, the bundle that came with the repository is served."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from segdistill.files import SegdistillError, write_json
from segdistill.runtime.bundle import BundleError
from segdistill.runtime.quality import FIELD, Limits
from serving import contract
from tests.live_server import BIN, ROOT, free_port, serve, watched
from tests.onnx_models import ball_file, threshold_bundle

TASK = "brain_mri"
LIMITS = Limits(0.5, 0.5, {"structure_1": (100.0, 200.0)})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one released bundle, in which nothing was ever packaged."""
    threshold_bundle(tmp_path / "released" / TASK, provenance={FIELD: LIMITS.to_json()})
    for name in ("SEGDISTILL_TASK", "SEGDISTILL_TUNING", "BENTOML_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(contract, "HERE", tmp_path / "serving")
    return tmp_path


def test_the_released_bundle_is_served_until_one_is_packaged(root: Path) -> None:
    """It has no version and runs as the reference; what is packaged comes before it."""
    write_json(root / "registry" / TASK / "bento.json", {"bento": None})
    write_json(root / "registry" / TASK / "tuning.json", {"choice": {"backend": "of another bundle"}})
    served, folder = contract.find_served()
    assert (served.task, served.name, served.numbered) == (TASK, "student-x4", "released")
    assert folder == root / "released" / TASK
    setting, _ = contract.find_setting(served, contract.verified(served, folder))
    assert str(setting).startswith("onnxruntime f32")

    packaged = {**served.to_json(), "version": 7, "model": "segdistill-brain-mri:abc", "bento": "b:1"}
    write_json(root / "registry" / TASK / "bento.json", packaged)
    shutil.copytree(folder, root / "bentos" / "models" / "segdistill-brain-mri" / "abc" / "bundle")
    assert contract.find_served()[0].numbered == "7"


def test_which_released_bundle_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several tasks SEGDISTILL_TASK names one; without any, or of another task, nothing is served."""
    threshold_bundle(root / "released" / "abdominal_ct", task="abdominal_ct")
    with pytest.raises(SegdistillError, match="Several tasks are released"):
        contract.find_served()
    monkeypatch.setenv("SEGDISTILL_TASK", "abdominal_ct")
    assert contract.find_served()[0].task == "abdominal_ct"
    monkeypatch.setenv("SEGDISTILL_TASK", "knee")
    with pytest.raises(SegdistillError, match="Nothing is packaged yet"):
        contract.find_served()


def test_a_released_bundle_that_was_changed_is_not_served(root: Path) -> None:
    """One changed byte, and the service says so in place of starting."""
    network = root / "released" / TASK / "model.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match="isn't the sealed one"):
        contract.find_served()


@pytest.mark.slow
def test_a_fresh_checkout_serves_it(root: Path) -> None:
    """A bare 'bentoml serve' answers with volumes, and says that the scan is to be checked and why."""
    shutil.copytree(ROOT / "serving", root / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "bentofile.yaml", root)
    ball_file(root / "scan.nii.gz")
    port = free_port()
    command = [str(BIN / "bentoml"), "serve", "--port", str(port)]
    with serve(command, port, "/readyz", root, watched(root), root / "serve.log") as live:
        scan = (root / "scan.nii.gz").read_bytes()
        body, segmented = (
            httpx.post(f"{live.url}/{where}", files={"scan": ("s.nii.gz", scan)}, timeout=120)
            for where in ("volumes", "segment")
        )
    assert body.status_code == segmented.status_code == 200
    quality = body.json()["quality"]
    assert quality["verdict"] == "check"
    assert quality["by_structure"]["structure_1"] > 0.9
    assert "expected are 100.0 to 200.0" in quality["reasons"][0]
    told = json.loads(segmented.headers["x-segdistill-quality"])
    assert told == {name: quality[name] for name in ("confidence", "verdict", "reasons")}
    assert body.json()["model"]["version"] is None
    assert segmented.headers["x-segdistill-version"] == "released"
