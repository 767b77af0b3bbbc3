"""Live metrics of a training in MLflow, from whichever machine the worker is on."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError


def only_from_here(uri: str) -> bool:
    """Whether a tracking address is of use on this machine alone: a local file, or loopback."""
    parts = urlsplit(uri)
    return parts.scheme.startswith("sqlite") or parts.hostname in ("localhost", "127.0.0.1", "::1")


class Tracker:
    """Logs rows of the learning curve to one MLflow run; without a run it does nothing.

    A tracking server that stops answering must not cost a training: the first failure is logged, and
    the curve is kept with the checkpoint in any case. A local database that isn't there is never made:
    MLflow would make an empty one, and the curve would be lost in it.
    """

    def __init__(self, tracking: Mapping[str, str]) -> None:
        self._run_id = tracking.get("run_id", "")
        self._client = None
        if not self._run_id:
            return
        uri = tracking["uri"]
        if uri.startswith("sqlite") and not Path(make_url(uri).database or "").is_file():
            logging.getLogger(__name__).warning("no live metrics, the training goes on: no file %s", uri)
            return
        self._client = MlflowClient(tracking_uri=uri)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of one row at its ``step``."""
        if self._client is None:
            return
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, row["step"])
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        ]
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            logging.getLogger(__name__).warning("live metrics stop, the training goes on: %s", error)
            self._client = None
