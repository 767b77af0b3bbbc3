import os

from segdistill import telemetry

# MLflow reads this while it is imported: it must be set before any module of this room imports it.
os.environ.update(telemetry.OFF)
# Bars would fill the logs of the pipeline.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
