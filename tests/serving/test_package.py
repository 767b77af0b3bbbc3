"""Packaging: exactly the promoted version, or nothing."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segdistill.files import SegdistillError, read_json, write_json
from segdistill.registry.champion import resolve
from segdistill.registry.promote import promote
from segdistill.registry.register import register_family
from segdistill.runtime.bundle import Bundle
from serving.packaging import bento as build
from serving.packaging.bento import LIBRARY
from tests.live_server import ROOT, watched
from tests.small_family import TASK, make_root

pytestmark = pytest.mark.slow
Package = Callable[[Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered root that nobody has promoted in."""
    root = make_root(tmp_path_factory.mktemp("package"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_family(root, TASK)
    return root


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def built(root: Path) -> list[str]:
    """What lies in the BentoML store, as kind/name/version."""
    found = [*root.glob("bentos/models/*/*"), *root.glob("bentos/bentos/*/*")]
    return sorted(str(path.relative_to(root / "bentos")) for path in found if path.is_dir())


def test_the_way_from_nobody_promoted_to_a_bento(root: Path, package: Package) -> None:
    """Unpromoted, nothing is packaged; promoted, the bento holds those bytes and no trainer."""
    done = package(root)
    assert done.returncode == 0, done.stderr
    assert read_json(root / "registry" / TASK / "bento.json") == {"bento": None}
    assert built(root) == []

    promote(root, TASK, "student-x4", reason="test")
    done = package(root)
    assert done.returncode == 0, done.stderr
    receipt = read_json(root / "registry" / TASK / "bento.json")
    assert (receipt["version"], receipt["name"]) == (2, "student-x4")
    model, version = receipt["model"].split(":")
    bundle = Bundle.read(root / "bentos" / "models" / model / version / "bundle")
    assert bundle.digest == receipt["bundle_digest"]
    exported = Bundle.read(root / "bundles" / TASK / "student-x4")
    assert bundle.model.read_bytes() == exported.model.read_bytes()

    name, version = receipt["bento"].split(":")
    bento = root / "bentos" / "bentos" / name / version
    rooms = {path.name for path in (bento / "src" / "segdistill").iterdir()}
    assert rooms == {*LIBRARY}
    requirements = (bento / "env" / "python" / "requirements.txt").read_text()
    assert "onnxruntime" in requirements
    for trainer in ("torch", "ray", "mlflow", "monai"):
        assert trainer not in requirements

    before = hashlib.sha256((root / "registry" / TASK / "bento.json").read_bytes()).hexdigest()
    there = built(root)
    assert package(root).returncode == 0
    assert built(root) == there
    again = hashlib.sha256((root / "registry" / TASK / "bento.json").read_bytes()).hexdigest()
    assert again == before


def test_an_alias_that_moves_while_packaging_stops_it(tmp_path: Path) -> None:
    """When the alias moves during the build, packaging fails, names both versions and leaves nothing."""
    root = make_root(tmp_path)
    register_family(root, TASK)
    promote(root, TASK, "student-x4", reason="test")
    receipts = root / "registry" / TASK
    common = {"cwd": ROOT, "env": watched(root), "text": True}
    subprocess.run(
        [sys.executable, "-m", "pipelines.champion", "--root", str(root),
         "--out", str(receipts / "champion.json")],
        check=True, capture_output=True, **common,
    )  # fmt: skip
    write_json(receipts / "tuning.json", {"choice": None})
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.package", "--root", str(root),
         "--champion", str(receipts / "champion.json"),
         "--tuning", str(receipts / "tuning.json"), "--out", str(receipts / "bento.json")],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, **common,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(path.startswith("models/") for path in built(root)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    promote(root, TASK, "teacher", reason="in the middle")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "champion moved from v2 to v1 while packaging" in errors
    assert built(root) == []
    assert not (receipts / "bento.json").exists()


def test_the_tuning_of_another_version_is_not_packaged(root: Path) -> None:
    """A tuning that was made for other bytes than the promoted ones stops the packaging."""
    champion = resolve(root, TASK, "champion")
    write_json(root / "tuning.json", {"choice": {"backend": "openvino"}, "bundle_digest": "0" * 64})
    with pytest.raises(SegdistillError, match=r"tuning\.json: of another version"):
        build.package(root, champion, threads=1, max_body_mb=1.0, tuning=root / "tuning.json")


def test_finding_what_is_served_imports_nothing_that_segmenting_needs() -> None:
    """The process that watches over the workers, which wait for it, loads no engine and no reader."""
    code = "import sys, serving.contract; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    needed = {"nibabel", "scipy", "onnxruntime", "openvino", "segdistill.runtime.segment"}
    assert not needed & set(done.stdout.split())
