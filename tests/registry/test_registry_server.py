"""The registry room against a real MLflow server."""

import hashlib
import sys
from pathlib import Path

import httpx
import pytest

from segdistill import telemetry
from segdistill.registry.champion import fetch_bundle, resolve
from segdistill.registry.promote import promote
from segdistill.registry.register import model_name, register_family
from tests.live_server import Live, free_port, serve, strangers, watched
from tests.small_family import TASK, make_root

pytestmark = pytest.mark.slow
API = "/api/2.0/mlflow"


def command(port: int, *more: str) -> list[str]:
    """An MLflow server without its job runner, on loopback."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *where, *more]


def environment(root: Path) -> dict[str, str]:
    """As 'make ui' sets it."""
    off = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **telemetry.OFF}
    return watched(root / "server", **off)


def test_what_a_person_sets_in_the_ui_is_what_is_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server on the local database shows the versions; the alias it sets is resolved without it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_root(tmp_path)
    register_family(root, TASK)
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    env, log = environment(root), root / "server.log"
    with serve(command(port, *store), port, "/health", root, env, log) as live:
        asked = {"name": model_name(TASK), "version": "2"}
        shown = httpx.get(f"{live.url}{API}/model-versions/get", params=asked).json()["model_version"]
        assert {tag["key"]: tag["value"] for tag in shown["tags"]}["role"] == "student"
        assert "not a medical device" in shown["description"]
        model_id = shown["source"].removeprefix("models:/")
        listed = httpx.get(
            f"{live.url}/ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/directories",
            params={"artifact_directory_path": "bundle"},
        ).json()
        assert {Path(entry["path"]).name for entry in listed["files"]} == {
            "card.md",
            "model.onnx",
            "plan.json",
            "provenance.json",
        }
        # The request that the UI's 'Save aliases' sends.
        body = {"name": model_name(TASK), "alias": "champion", "version": "2"}
        assert httpx.post(f"{live.url}{API}/registered-models/alias", json=body).status_code == 200
        assert resolve(root, TASK, "champion").name == "student-x4"
    assert strangers(root / "server") == set()


def test_a_server_holds_the_registry_when_one_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MLFLOW_TRACKING_URI, all is kept by that server, and what is fetched has the same bytes."""
    root = make_root(tmp_path / "root")
    port = free_port()
    there = tmp_path / "there"
    there.mkdir()
    store = ["--backend-store-uri", f"sqlite:///{there / 'central.db'}"]
    store += ["--artifacts-destination", str(there / "files")]
    env, log = environment(tmp_path), tmp_path / "server.log"
    with serve(command(port, *store), port, "/health", there, env, log) as live:
        _through(live, root, tmp_path, monkeypatch)
    assert not (root / "mlflow.db").exists()
    assert not (root / "mlartifacts").exists()


def _through(live: Live, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", live.url)
    assert all(entry.new for entry in register_family(root, TASK))
    assert not any(entry.new for entry in register_family(root, TASK))
    promote(root, TASK, "student-x4", reason="test")
    champion = resolve(root, TASK, "champion")
    bundle = fetch_bundle(root, champion, tmp_path / "bundle")
    seal = (bundle.folder / "provenance.json").read_bytes()
    assert hashlib.sha256(seal).hexdigest() == champion.bundle_digest
