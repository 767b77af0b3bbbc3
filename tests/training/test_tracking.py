"""Where the learning curve goes, and where it must not."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import train as train_stage
from segdistill.files import read_json
from segdistill.registry.store import open_store, start_run
from segdistill.training import launch
from segdistill.training.tracking import Tracker, only_from_here
from tests.training.toy import NETWORK, TRAINING, toy_data, toy_job

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        ("sqlite:////data/project/mlflow.db", True),
        ("sqlite+pysqlite:///mlflow.db", True),
        ("http://127.0.0.1:5000", True),
        ("http://localhost:5000", True),
        ("http://[::1]:5000", True),
        ("https://mlflow.hospital.example", False),
        ("http://10.0.0.7:5000", False),
        ("postgresql://db.hospital.example/mlflow", False),
    ],
)
def test_which_addresses_are_of_use_on_this_machine_alone(uri: str, here: bool) -> None:
    """A local database and a server on loopback can't be reached from another machine."""
    assert only_from_here(uri) is here


def test_a_worker_never_makes_a_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the local database isn't there, the worker says so, logs nothing and makes none."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Tracker({"uri": uri, "run_id": "0" * 32}).log({"step": 1, "loss": 0.5})
    assert "no live metrics, the training goes on" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_on_a_cluster_the_curve_is_logged_from_here_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With RAY_ADDRESS and a local database the workers get no address, and the curve is whole."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = open_store(tmp_path)
    run_id = start_run(store, "toy")
    job = toy_job(tmp_path, tracking={"uri": store.uri, "run_id": run_id})
    monkeypatch.setenv("RAY_ADDRESS", "local")
    _, history = launch.run(job, tmp_path / "runs")
    logged = store.client.get_metric_history(run_id, "loss")
    # Once each: had a worker logged too, there would be twice as many.
    assert sorted(metric.step for metric in logged) == [row["step"] for row in history]
    assert "MLflow gets the curve when the training is done" in capfd.readouterr().out


def test_the_record_names_the_commit_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """model.json holds the commit of the training, and says where the code differed from it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for part, knobs in (("network", NETWORK), ("training", TRAINING)):
        params[part] = {name: getattr(knobs, name) for name in params[part]}
    params["teacher"]["steps"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    plan, data = toy_data(tmp_path)
    (tmp_path / "platform").mkdir()
    code = tmp_path / "platform" / "code.py"
    code.write_text("1\n")

    def git(*arguments: str) -> str:
        me = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        command = ["git", *me, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def trained() -> object:
        where = ["--plan", plan, "--data", data, "--out", "models/teacher", "--curves", "curve.csv"]
        monkeypatch.setattr(sys, "argv", ["train", "teacher", "--here", *map(str, where)])
        train_stage.main()
        record = read_json(tmp_path / "models" / "teacher" / "model.json")["training"]
        assert record["schedule"]["steps"] == 1
        return record["git_commit"]

    monkeypatch.chdir(tmp_path)
    assert trained() is None
    git("init", "-q")
    git("add", "platform")
    git("commit", "-q", "-m", "code")
    commit = git("rev-parse", "HEAD")
    assert trained() == commit
    code.write_text("2\n")
    assert trained() == f"{commit}-dirty"
