"""Where runs and model versions are kept: a local MLflow database, or the server the user names.

Without a server, clients write ``mlflow.db`` and ``mlartifacts/`` in the root directly; ``mlflow ui``
opens the same database. With ``MLFLOW_TRACKING_URI`` set, all goes through that server.
"""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from segdistill.files import SegdistillError, atomic_path

EXPERIMENT = "segdistill"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
RUN_KEY = "segdistill.run_key"
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_WAIT_S = 120.0  # for another process that makes the database, which takes it seconds


class RegistryError(SegdistillError):
    """The registry doesn't hold what was asked for, or holds something else than expected."""


class _Data(MetaDataset):
    """Data that is known by its place and digest alone."""

    @property
    def profile(self) -> None:
        return None


@dataclass(frozen=True)
class Store:
    """An open MLflow store.

    Attributes:
        client: the client to talk to it.
        experiment_id: the experiment that holds this platform's runs.
        uri: ``sqlite:///...`` or the server's address.
    """

    client: MlflowClient
    experiment_id: str
    uri: str


def store_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI`` if it is set, else the database ``mlflow.db`` in ``root``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / DATABASE}"


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or the network raises into a RegistryError.

    A store that is out of reach says nothing about what it holds: only :func:`absent` does.

    Raises:
        RegistryError: with the store's address, the cause, and what to do.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, MlflowException) and error.error_code in _REFUSED:
            raise RegistryError(
                f"{uri}: the MLflow server refused the request ({brief(error)}). Set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that may use it."
            ) from error
        raise RegistryError(
            f"{uri}: the MLflow store can't be opened or used ({brief(error)}). Try again when it "
            "answers. Check MLFLOW_TRACKING_URI, or unset it to use the database in the root."
        ) from error


def absent(error: MlflowException) -> bool:
    """Whether MLflow answered that what was asked for doesn't exist; not that it couldn't answer."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def brief(error: BaseException) -> str:
    """An error's text in one line of at most 300 characters; its type where it has none."""
    text = " ".join(str(error).split())
    return (text if len(text) <= 300 else f"{text[:297]}...") or type(error).__name__


def open_store(root: Path, experiment: str = EXPERIMENT) -> Store:
    """Open the store, and make its experiment on the first call.

    A local experiment gets an absolute ``file://`` artifact location under ``root/mlartifacts``, so
    that a direct client and a server on the same database read the same files.

    Args:
        root: folder of ``mlflow.db`` and ``mlartifacts``; the repository's root.
        experiment: name of the experiment.

    Raises:
        RegistryError: the store can't be reached, or its experiment is of no use to a direct client.
    """
    # A new database logs fifty lines of schema migrations.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = store_uri(root)
    # The registry's own code asks for the global client in places: it must be the same store.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    local = uri.startswith("sqlite:")
    with reaching(uri):
        if local:
            _ensure_database(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            location = (root.resolve() / ARTIFACTS).as_uri() if local else None
            try:
                client.create_experiment(experiment, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another one was quicker
                    raise
            found = client.get_experiment_by_name(experiment)
        assert found is not None  # noqa: S101 - it was made just now
    if local and not found.artifact_location.startswith("file:"):
        raise RegistryError(
            f"{uri}: experiment {experiment} keeps its files at {found.artifact_location}, which only a "
            "server can read. Start that server and set MLFLOW_TRACKING_URI to its address."
        )
    if found.lifecycle_stage != "active":
        raise RegistryError(
            f"{uri}: experiment {experiment} was deleted. "
            f"Bring it back with 'mlflow experiments restore --experiment-id {found.experiment_id}'."
        )
    return Store(client, found.experiment_id, uri)


def _ensure_database(uri: str) -> None:
    """Make a new local database whole, or wait for the process that does.

    MLflow makes its tables one by one: of two processes that open a new database at once one fails, and
    a kill leaves half of it. So it is made under a temporary name, by one process at a time.
    """
    database = Path(make_url(uri).database or "").absolute()
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_WAIT_S):
        if not database.exists():
            with atomic_path(database) as partial:
                MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)


def start_run(
    store: Store,
    name: str,
    *,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    key: str | None = None,
) -> str:
    """Start a run, or go on with the one of the same key, and give its id.

    Args:
        store: an open store.
        name: the run's name in the UI.
        params: settings of the run; on a run that goes on, they must be as they were.
        tags: facts about the run.
        key: digest of what the run depends on; a run with this key that isn't finished is continued,
            so that an interrupted training goes on in its own curve.
    """
    labels = {tag: str(value) for tag, value in (tags or {}).items()}
    run_id = None
    with reaching(store.uri):
        if key is not None:
            labels[RUN_KEY] = key
            found = store.client.search_runs(
                [store.experiment_id],
                f"tags.`{RUN_KEY}` = '{key}' and attributes.status != 'FINISHED'",
            )
            if found:
                run_id = str(found[0].info.run_id)
                store.client.update_run(run_id, status="RUNNING")
        if run_id is None:
            run_id = str(store.client.create_run(store.experiment_id, run_name=name).info.run_id)
        store.client.log_batch(
            run_id,
            params=[Param(param, str(value)) for param, value in (params or {}).items()],
            tags=[RunTag(tag, value) for tag, value in labels.items()],
        )
    return run_id


def log_metrics(
    store: Store, run_id: str, metrics: Mapping[str, float], step: int = 0, model_id: str | None = None
) -> None:
    """Log figures of one step; with ``model_id`` they are also shown on the model's own page."""
    now = int(time.time() * 1000)
    store.client.log_batch(
        run_id,
        metrics=[
            Metric(name, float(value), now, step, model_id=model_id, run_id=run_id)
            for name, value in metrics.items()
        ],
    )


def log_data(store: Store, run_id: str, data: Mapping[str, tuple[str, str, str]]) -> None:
    """Record which data a run used, as MLflow's dataset inputs.

    Args:
        store: an open store.
        run_id: the run.
        data: name to (path relative to the root, digest of at most 36 characters, context), e.g.
            ``{"site_a": ("data/sites/brain_mri/site_a", "0f3..b1.dir", "training")}``.
    """
    with warnings.catch_warnings():
        # A path could be read by two of MLflow's sources, which are the same class.
        warnings.simplefilter("ignore", UserWarning)
        inputs = [
            DatasetInput(
                _Data(resolve_dataset_source(path), name=name, digest=digest)._to_mlflow_entity(),
                [InputTag("mlflow.data.context", context)],
            )
            for name, (path, digest, context) in data.items()
        ]
    if inputs:
        store.client.log_inputs(run_id, inputs)


def end_run(store: Store, run_id: str, status: str = "FINISHED") -> None:
    """Close a run as ``FINISHED`` or ``FAILED``.

    A store that doesn't answer is a warning: the work that the run is about is done, or failed for a
    reason of its own.
    """
    try:
        with reaching(store.uri):
            store.client.set_terminated(run_id, status=status)
    except RegistryError as error:
        logging.getLogger(__name__).warning(
            "run %s isn't marked %s in MLflow: %s", run_id, status, error
        )
