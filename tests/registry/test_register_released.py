"""A bundle that came with the repository is registered and promoted like any other."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.registry.champion import fetch_bundle, resolve
from segdistill.registry.promote import promote
from segdistill.registry.register import model_name, register_family
from segdistill.registry.store import open_store
from segdistill.runtime.bundle import seal
from segdistill.runtime.quality import FIELD, Limits
from tests.onnx_models import threshold_bundle
from tests.small_family import TASK, make_root


def test_a_released_bundle_is_registered_once_and_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new store it's one version with its figures; promoted, its very bytes are fetched."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home, here = make_root(tmp_path / "home"), tmp_path / "here"
    register_family(home, TASK)
    promote(home, TASK, "student-x4", reason="to release it")
    fetched = fetch_bundle(home, resolve(home, TASK, "champion"), tmp_path / "fetched")
    limits = Limits(0.5, 0.5, {"structure_1": (1.0, 2.0)})
    released = seal(fetched.folder, here / "released" / TASK, {}, {FIELD: limits.to_json()})
    shutil.rmtree(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow notes there what it has open

    words = ["register-released", "--root", str(here), "--model", str(released.folder)]
    for told in ("v1 student-x4: new", "v1 student-x4: was registered already"):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert told in done.output
    (version,) = open_store(here).client.search_model_versions(f"name='{model_name(TASK)}'")
    assert float(version.tags["dice"]) == 0.89
    assert version.tags["simulated"] == "true"
    promote(here, TASK, "student-x4", reason="the released one")
    champion = resolve(here, TASK, "champion")
    assert champion.objection == ""
    assert fetch_bundle(here, champion, tmp_path / "again").digest == released.digest


def test_a_bundle_without_figures_is_not_registered(tmp_path: Path) -> None:
    """A bundle that was never registered has no figures to show, and what to do is said."""
    bundle = threshold_bundle(tmp_path / "bundle")
    words = ["register-released", "--root", str(tmp_path), "--model", str(bundle.folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "lacks what the registry shows" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert CliRunner().invoke(app, [*words, "--task", "abdominal_ct"]).exit_code == 1
