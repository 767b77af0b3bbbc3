"""Live metrics of a training in MLflow, from whichever machine the worker is on."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


class Tracker:
    """Logs rows of the learning curve to one MLflow run; without a run it does nothing.

    A tracking server that stops answering must not cost a training: the first failure is logged, and
    the curve is kept with the checkpoint in any case.
    """

    def __init__(self, tracking: Mapping[str, str]) -> None:
        self._run_id = tracking.get("run_id", "")
        self._client = MlflowClient(tracking_uri=tracking["uri"]) if self._run_id else None

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of one row at its ``step``."""
        if self._client is None:
            return
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, row["step"])
            for name, value in row.items()
            if name != "step" and value is not None
        ]
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except (MlflowException, OSError) as error:
            logging.getLogger(__name__).warning("live metrics stop, the training goes on: %s", error)
            self._client = None
