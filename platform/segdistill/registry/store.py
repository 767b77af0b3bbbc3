"""Where runs and model versions are kept: a local MLflow database, or the server the user names.

Without a server, clients write ``mlflow.db`` and ``mlartifacts/`` in the root directly; ``mlflow ui``
opens the same database. With ``MLFLOW_TRACKING_URI`` set, all goes through that server.
"""

import logging
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from segdistill.files import SegdistillError

EXPERIMENT = "segdistill"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
RUN_KEY = "segdistill.run_key"


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
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            location = (root.resolve() / ARTIFACTS).as_uri() if local else None
            experiment_id = client.create_experiment(experiment, artifact_location=location)
            return Store(client, experiment_id, uri)
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"{uri}: the MLflow store can't be opened ({_first_line(error)}). "
            "Check MLFLOW_TRACKING_URI, or unset it to use the database in the root."
        ) from error
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
    if key is not None:
        labels[RUN_KEY] = key
        found = store.client.search_runs(
            [store.experiment_id], f"tags.`{RUN_KEY}` = '{key}' and attributes.status != 'FINISHED'"
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
    """Close a run as ``FINISHED`` or ``FAILED``."""
    store.client.set_terminated(run_id, status=status)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
