"""Several processes at the registry at the same moment, on the local database and through a server."""

import json
import multiprocessing
import shutil
import sqlite3
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.tracking import MlflowClient

from segdistill.registry.champion import aliases
from segdistill.registry.promote import promote, promotions
from segdistill.registry.register import model_name, register_family
from segdistill.registry.store import RegistryError, open_store
from tests.live_server import free_port, serve
from tests.registry.test_registry_server import command, environment
from tests.small_family import TASK, make_root

PEOPLE, TURNS = 2, 8


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose family is registered; nobody promotes in it."""
    root = make_root(tmp_path_factory.mktemp("registered"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_family(root, TASK)
    return root


@pytest.fixture
def root(registered: Path, tmp_path: Path) -> Path:
    """A root of its own with the same registry; a promotion needs no more than the database."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copyfile(registered / "mlflow.db", root / "mlflow.db")
    return root


def at_once(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(number, barrier, *arguments)`` in as many processes, and wait for all."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(count)
    everyone = [
        spawn.Process(target=work, args=(number, barrier, *arguments)) for number in range(count)
    ]
    for one in everyone:
        one.start()
    for one in everyone:
        one.join(240)
    assert [one.exitcode for one in everyone] == [0] * count


def _promote(number: int, barrier: Barrier, root: Path) -> None:
    for turn in range(TURNS):
        barrier.wait(120)
        which = "student-x4" if (number + turn) % 2 else "teacher"
        promote(root, TASK, which, reason=f"{number} {turn}", by=str(number))


def _open(_number: int, barrier: Barrier, root: Path) -> None:
    barrier.wait(120)
    open_store(root)


def all_is_noted(root: Path) -> None:
    """Every promotion is in the log, each person's own in order, and the alias is the last one's."""
    log = promotions(root, TASK)
    assert len(log) == PEOPLE * TURNS
    for number in range(PEOPLE):
        mine = [entry.reason for entry in log if entry.by == str(number)]
        assert mine == [f"{number} {turn}" for turn in range(TURNS)]
    assert aliases(root, TASK) == {"champion": log[-1].version}


@pytest.mark.slow
def test_promotions_at_once_are_all_noted(root: Path) -> None:
    """Of two people's promotions at the same moments none is lost, and the alias is the last one's."""
    at_once(PEOPLE, _promote, root)
    all_is_noted(root)


@pytest.mark.slow
def test_promotions_at_once_through_a_server_are_all_noted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds through a server."""
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    env, log = environment(tmp_path), tmp_path / "server.log"
    with serve(command(port, *store), port, "/health", tmp_path, env, log) as live:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", live.url)
        at_once(PEOPLE, _promote, root)
        all_is_noted(root)


@pytest.mark.slow
def test_first_openings_at_once_all_succeed(tmp_path: Path) -> None:
    """Three processes that open a registry which doesn't exist yet all get it."""
    at_once(3, _open, tmp_path)
    assert open_store(tmp_path).client.search_experiments(filter_string="name = 'segdistill'")


def test_a_promotion_that_another_one_overtakes_gives_way(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever moves the alias after a newer note was written moves it on to that note's version."""
    set_alias, calls, overtaken = MlflowClient.set_registered_model_alias, [], []

    def late(client: MlflowClient, name: str, alias: str, version: str) -> None:
        calls.append(version)
        if len(calls) == 1:
            overtaken.append(promote(root, TASK, "student-x4", reason="the quick one"))
        set_alias(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", late)
    promote(root, TASK, "teacher", reason="the late one")
    assert [entry.reason for entry in promotions(root, TASK)] == ["the late one", "the quick one"]
    assert calls == ["1", "2", "2"]
    assert aliases(root, TASK) == {"champion": overtaken[0].version}


def test_an_alias_that_two_make_at_once_is_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MLflow's database refuses a new alias because another one was quicker, it is set then."""
    set_alias, calls = MlflowClient.set_registered_model_alias, []

    def second(client: MlflowClient, name: str, alias: str, version: str) -> None:
        calls.append(version)
        if len(calls) == 1:
            set_alias(client, name, alias, "2")
            raise MlflowException("UNIQUE constraint failed", error_code=BAD_REQUEST)
        set_alias(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", second)
    promote(root, TASK, "teacher", reason="test")
    assert calls == ["1", "1"]
    assert aliases(root, TASK) == {"champion": 1}


def test_older_notes_stay_in_the_log(root: Path) -> None:
    """Notes without a number, as they once were written, come first, in the order of their times."""
    client = open_store(root).client
    old = {"alias": "champion", "by": "ada", "overridden": "", "previous": None}
    for version, day in (("2", 1), ("1", 2), ("2", 3)):
        note = old | {"at": f"2026-01-0{day}T09:00:00+00:00", "version": int(version)}
        note |= {"name": "of then", "reason": f"day {day}"}
        client.set_model_version_tag(model_name(TASK), version, f"promotion.{day:03d}", json.dumps(note))
    new = promote(root, TASK, "teacher", reason="today")
    assert [entry.reason for entry in promotions(root, TASK)] == ["day 1", "day 2", "day 3", "today"]
    assert new.number == 4


def test_a_note_that_is_none_is_named(root: Path) -> None:
    """A tag that somebody changed into something else than a note is named before anything moves."""
    open_store(root).client.set_model_version_tag(model_name(TASK), "1", "promotion.x", "by hand")
    with pytest.raises(RegistryError, match=r"v1 teacher: its tag promotion\.x is no promotion's note"):
        promote(root, TASK, "teacher", reason="test")
    assert aliases(root, TASK) == {}


def test_a_first_opening_that_is_cut_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off while its tables are made, a database isn't there, and the next opening makes it whole."""

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_experiments", cut_off)
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db.lock"}
    open_store(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    """A file that is no database, and a folder that can't be written, are named in one line."""
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: the MLflow store can't be opened or used"):
        open_store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="can't be opened or used"):
        open_store(tmp_path / "file" / "root")


@pytest.mark.parametrize(
    "alias",
    [
        "latest",
        "LATEST",
        "v1",
        "V12",
        "",
        " ",
        "two words",
        "50%",
        "a/b",
        "a.b",
        "champion\n",
        "x" * 256,
    ],
)
def test_an_alias_that_mlflow_refuses_is_refused_first(tmp_path: Path, alias: str) -> None:
    """A reserved or odd alias is refused in words, before anything is opened or written."""
    with pytest.raises(RegistryError, match="isn't possible"):
        promote(tmp_path, TASK, "teacher", reason="test", alias=alias)
    assert list(tmp_path.iterdir()) == []


def test_odd_words_in_a_promotion(root: Path) -> None:
    """Letters of any script are kept; too long a reason, or a version that is no number, is refused."""
    promote(root, TASK, "1", reason="für die Ärzte: 50 % schneller", alias="Prüfung", by="  ")
    entry = promotions(root, TASK)[0]
    assert (entry.reason, entry.alias) == ("für die Ärzte: 50 % schneller", "Prüfung")
    assert entry.by
    for changes, match in (({"reason": "r" * 5000}, "Shorten --reason"), ({"which": "²"}, "no version")):
        asked: dict[str, str] = {"which": "1", "reason": "test"} | changes
        with pytest.raises(RegistryError, match=match):
            promote(root, TASK, asked["which"], reason=asked["reason"])
    assert aliases(root, TASK) == {"Prüfung": 1}
    assert len(promotions(root, TASK)) == 1
