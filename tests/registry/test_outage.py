"""A store that is out of reach, or refuses, is never taken for an empty one."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines import champion as champion_stage
from segdistill.registry.champion import Champion, aliases, fetch_bundle, resolve
from segdistill.registry.promote import promote, promotions
from segdistill.registry.register import register_family
from segdistill.registry.store import RegistryError, Store, end_run, open_store, start_run
from segdistill.registry.weights import trained_model
from tests.live_server import free_port, serve
from tests.registry.test_registry_server import command, environment
from tests.small_family import TASK, make_root

EXPERIMENT = {"experiment_id": "1", "name": "segdistill", "lifecycle_stage": "active"}
CALLS: dict[str, Callable[[Path], object]] = {
    "register": lambda root: register_family(root, TASK),
    "promote": lambda root: promote(root, TASK, "teacher", reason="test"),
    "log": lambda root: promotions(root, TASK),
    "aliases": lambda root: aliases(root, TASK),
    "resolve": lambda root: resolve(root, TASK, "champion"),
    "weights": lambda root: trained_model(root, TASK, "teacher"),
    "fetch": lambda root: fetch_bundle(
        root, Champion(TASK, "champion", 1, "teacher", "0" * 64, ""), root / "bundle"
    ),
    "run": lambda root: start_run(open_store(root), "training", key="k"),
}


class _Refusing(ThreadingHTTPServer):
    """MLflow's wire format: knows the experiment, and answers everything else as it is told."""

    status = 503
    body = b""
    opens = True  # whether the experiment is told

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: _Refusing

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        opening = server.opens and "/experiments/get-by-name" in self.path
        body = json.dumps({"experiment": EXPERIMENT}).encode() if opening else server.body
        self.send_response(200 if opening else server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the name that the server calls

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Refusing]:
    """Such a server, set as the store."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with _Refusing() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose family isn't registered."""
    return make_root(tmp_path_factory.mktemp("outage"))


@pytest.mark.parametrize("opens", [True, False], ids=["opens", "fails at once"])
@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"You are not authenticated.", "MLFLOW_TRACKING_USERNAME"),
        (403, b"Permission denied", "MLFLOW_TRACKING_USERNAME"),
        (404, b"<html>no such page</html>", "can't be opened or used"),
        (200, b"<html>please log in</html>", "can't be opened or used"),
        (503, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "no"}', "can't be opened or used"),
    ],
)
def test_a_store_that_refuses_is_not_an_empty_one(
    server: _Refusing, root: Path, status: int, body: bytes, said: str, opens: bool
) -> None:
    """Whatever is asked, a refusal or an outage is told as such, and nothing is made in the store."""
    server.status, server.body, server.opens = status, body, opens
    for name, call in CALLS.items():
        with pytest.raises(RegistryError, match=said) as told:
            call(root)
        assert server.url in str(told.value), name
        assert "is registered" not in str(told.value), name
    assert not [line for line in server.asked if line.startswith("POST") and "create" in line]


def test_only_mlflow_itself_says_that_nothing_is_registered(server: _Refusing, root: Path) -> None:
    """MLflow's own answer that there is no such model is the one that means it."""
    server.status = 404
    server.body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}'
    for name in ("promote", "aliases", "resolve", "weights"):
        with pytest.raises(RegistryError, match="nothing is registered"):
            CALLS[name](root)


def test_a_run_that_cannot_be_closed_costs_nothing(
    server: _Refusing, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage when the work is done is a warning: the work isn't lost for it."""
    store: Store = open_store(root)
    end_run(store, "0" * 32)
    assert "isn't marked FINISHED" in caplog.text


@pytest.mark.slow
def test_a_server_that_was_stopped_leaves_the_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server is gone the champion stage fails in words, and its receipt is as it was."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root, port, receipt = make_root(tmp_path / "root"), free_port(), tmp_path / "champion.json"
    monkeypatch.setattr(sys, "argv", ["champion", "--root", str(root), "--out", str(receipt)])
    store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'central.db'}"]
    store += ["--artifacts-destination", str(tmp_path / "files")]
    env, log = environment(tmp_path), tmp_path / "server.log"
    with serve(command(port, *store), port, "/health", tmp_path, env, log) as live:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", live.url)
        with pytest.raises(RegistryError, match="nothing is registered"):
            champion_stage.main()
        register_family(root, TASK)
        promote(root, TASK, "student-x4", reason="test")
        champion_stage.main()
        before = receipt.read_bytes()
    for call in (champion_stage.main, *(lambda call=call: call(root) for call in CALLS.values())):
        with pytest.raises(RegistryError, match="can't be opened or used"):
            call()
    assert receipt.read_bytes() == before
